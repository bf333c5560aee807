"""The tiny concatenation host: its projector first learns the words of single patches, then to be asked about pictures.

The language model never saw a picture and stays frozen, so the projector has to speak its language. Starting from the
embedding of the word that states what a patch shows (`e3seven`, `2redcircle`) is the alignment stage of LLaVA, with
labelled patches in the place of captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm.data.dense import TARGETS, UNKNOWN
from mm.data.scene_patches import ScenePatchConfig, scene_rows
from mm.data.seeded_module import DenseDataConfig, dense_rows
from mm.data.split import Split
from mm.data.tokenizer import word_ids
from mm.data.words import BOARD_WORDS, COLOURS, DIGITS, SCENE_WORDS, SHAPES
from mm.training.host import HostModule
from mm.vlm import VisionLanguageModel

BACKGROUND = "background"
Rows = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
"""Seeds -> pictures (B, 3, H, W) in 0..1 and what each patch shows, an index into `patch_words`, (B, N) int64."""


class TinyHostModule(HostModule):
    """`HostModule` on the tiny parts with a word-aligned projector.

    Args:
        align_steps: Steps of the alignment; 0 starts from a random projector.
        options: Those of `HostModule`.
    """

    def __init__(self, align_steps: int = 600, **options: Any) -> None:
        super().__init__(**options)
        if align_steps:
            align(self.model, align_steps, type(self).rows)

    @staticmethod
    def rows(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Boards and scenes of 64 pixels, 64 patches each."""
        batch = dense_rows(DenseDataConfig(), seeds)
        return batch["pictures"], shown_words(batch)


class WideHostModule(TinyHostModule):
    """The same for pictures of 128 pixels with 256 patches: wide scenes.

    Args:
        options: Those of `TinyHostModule`.
    """

    def __init__(self, tower: str = "tiny_vit_256", **options: Any) -> None:
        super().__init__(tower=tower, **options)

    @staticmethod
    def rows(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Wide scenes."""
        batch = scene_rows(ScenePatchConfig(), seeds)
        return batch["pictures"], scene_words(*(batch[f"patch_{name}"] for name in ("place", "colour", "shape")))


def align(model: VisionLanguageModel, steps: int, rows: Rows, *, batch_size: int = 32, lr: float = 3e-3) -> float:
    """Regress the projector onto the embeddings of the words that patches show, on a GPU where there is one.

    Args:
        model: Host whose projector learns.
        steps: Optimiser steps.
        rows: Labelled pictures.
        batch_size: Pictures per step.
        lr: Peak learning rate.

    Returns:
        Mean squared error of the last batch, relative to the mean square of the targets.
    """
    home = model.device
    model.to("cuda" if torch.cuda.is_available() else home)
    words = patch_words().to(model.device)
    optimizer = torch.optim.AdamW(model.projector.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seeds = Split("train").seeds
    scale = model.tower.preprocessing
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (scale.mean, scale.std))
    error = torch.ones(())
    for step in range(steps):
        pictures, shown = rows(seeds[step * batch_size : (step + 1) * batch_size])
        with torch.no_grad():
            tokens = model.tower(((pictures - mean) / std).to(model.device)).tokens  # (B, N, D_v)
            target = model.backbone.embed(words[shown.to(model.device)])  # (B, N, D)
        error = F.mse_loss(model.projector(tokens), target) / target.square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
    model.to(home)
    return float(error.detach())


def patch_words() -> Tensor:
    """Token ids of everything a patch can show: boards, scenes, background, (1217,) int64."""
    return torch.tensor([word_ids()[word] for word in (*BOARD_WORDS, *SCENE_WORDS, BACKGROUND)])


def shown_words(batch: dict[str, Tensor]) -> Tensor:
    """Index into `patch_words` of what each patch shows, (B, 64) int64."""
    board = (batch["row"] * 8 + batch["col"]) * len(DIGITS) + batch["digit"]
    scene = scene_words(batch["place"], batch["colour"], batch["shape"])
    return torch.where(batch["digit"] == UNKNOWN, scene, board)


def scene_words(place: Tensor, colour: Tensor, shape: Tensor) -> Tensor:
    """The same of a scene, from the classes of its patches, each (B, N) int64."""
    scene = (place * len(COLOURS) + colour) * len(SHAPES) + shape + len(BOARD_WORDS)
    nothing = len(BOARD_WORDS) + len(SCENE_WORDS)
    return torch.where(colour == TARGETS["colour"].index("nothing"), nothing, scene)
