"""Training of a segmenter on labelled crops: Dice and cross-entropy, nothing frozen."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.checkpoint import config_from_dict, load
from mm.extras import require
from mm.medical.datasets import label_names
from mm.medical.velvet.model import VelvetModel
from mm.medical.velvet.segmenter import MULTIPLE, Segmenter, SegmenterConfig
from mm.training.module import OptimizerConfig, TrainingModule


class SegmentModule(TrainingModule):
    """Train a `Segmenter`, from a pre-trained VELVET-Med encoder or from random weights.

    Args:
        encoder: VELVET-Med model whose vision encoder it starts from: shipped name or folder; empty: random weights of
            the sizes in `segmenter`.
        labels: "dataset.json" of a Decathlon or nnU-Net data set, which names the labels; empty: those of `segmenter`.
        segmenter: Fields of `SegmenterConfig` (spacing_mm, window, patch, ...).
        seed: Of the random weights.
        optimizer: Published: AdamW, betas (0.9, 0.99), decay 1e-4, rate 2e-5, cosine.

    Source: segmentation of VELVET-Med's published code: Dice + cross-entropy over softmax, all weights trained.
    """

    model: Segmenter

    def __init__(
        self,
        encoder: str = "",
        labels: str = "",
        segmenter: dict[str, Any] | None = None,
        seed: int = 0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        fields: dict[str, Any] = dict(segmenter or {})
        base = load(encoder) if encoder else None
        if base is not None and not isinstance(base, VelvetModel):
            raise ValueError(f"{encoder} holds a {type(base).__name__}, not a VelvetModel")
        if labels:
            fields["labels"] = names_in_order(label_names(Path(labels)))
        if base is not None:
            fields["vision"] = asdict(base.config.vision)
        config = config_from_dict(SegmenterConfig, fields, source="segmenter")
        if config.patch == MULTIPLE and config.bottleneck:
            raise ValueError(
                f"a patch of {MULTIPLE} voxels leaves a single one for the last convolutions, which cannot be "
                "normalised: set segmenter.bottleneck to false, or a patch of 64"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Segmenter(config)
        if base is not None:
            model.take_encoder(base.vision)
        super().__init__(model.train(), optimizer)
        losses = require("monai.losses", extra="medical", purpose="Training a segmenter")
        self.loss = losses.DiceCELoss(softmax=True, to_onehot_y=True)

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """Dice + cross-entropy of crops `image` and `labels`, and the mean Dice of the labels that occur."""
        scores = self.model(batch["image"])
        loss = self.loss(scores.float(), batch["labels"])
        return loss, {
            "dice": mean_dice(scores.detach().argmax(1, keepdim=True), batch["labels"], len(self.model.labels))
        }

    def batch_size(self, batch: Any) -> int:
        return len(batch["image"])


def mean_dice(found: Tensor, truth: Tensor, count: int) -> Tensor:
    """2 |A and B| / (|A| + |B|) of every label but background that the truth holds, their mean; 1 if it holds none."""
    scores = []
    for value in range(1, count):
        ours, theirs = found == value, truth == value
        both = (ours & theirs).sum()
        scores.append(torch.where(theirs.any(), 2 * both / (ours.sum() + theirs.sum()).clamp(min=1), torch.nan))
    mean = torch.stack(scores).nanmean()
    return torch.where(mean.isnan(), torch.ones_like(mean), mean)


def names_in_order(names: dict[int, str]) -> tuple[str, ...]:
    """Label names by value, with a name for values that the list leaves out.

    Example:
        >>> names_in_order({0: "background", 2: "liver"})
        ('background', 'label 1', 'liver')
    """
    return tuple(names.get(value, f"label {value}") for value in range(max(names) + 1))
