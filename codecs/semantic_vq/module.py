"""Training of a semantic tokenizer against a frozen teacher (stage A of E-ViLM).

    L = mean(1 - cos(rebuilt, teacher)) + commitment

Where most of a picture is ground, that mean is reached by rebuilding the ground everywhere. Two things keep training
from resting there: the mean of the teacher's features is taken off both sides (`centre`), and data that knows where
things are can give `weights`.
Source: VQ-KD (BEiT v2, arXiv:2208.06366). Published: AdamW betas (0.9, 0.99), weight decay 1e-4, rate 2e-4 at batch
512, cosine to 1e-5, 10 of 100 epochs of warm-up, no clipping; ours clips unless `optimizer.clip_norm` is null.
Deviation: published training neither centres nor weighs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from mm.checkpoint import create_model
from mm.codecs.semantic_vq.loss import cosine_distance, patch_pixels
from mm.codecs.semantic_vq.teacher import Teacher, tower_teacher
from mm.codecs.semantic_vq.tokenizer import SemanticVQTokenizer
from mm.training.module import OptimizerConfig, TrainingModule
from mm.vision import TowerConfig


class SemanticVQModule(TrainingModule):
    """Train a `SemanticVQTokenizer`.

    Batches hold `pictures` (B, 3, S, S) in 0..1 or uint8. Without a teacher they also hold `targets` (B, N, C). They
    may hold `weights` (B, N) of the patches.

    Args:
        tokenizer: Weights to start from: a shipped name, a folder or a hub id; none takes random ones of `preset`.
        preset: Sizes of a fresh tokenizer.
        seed: Of its weights.
        teacher: Tower whose last layer is the target; none reads `targets` from the batch.
        teacher_weights: As the library names them ("openai", "pretrained", a file); none gives a random teacher.
        target: "teacher", or "pixels" for the control whose codes rebuild the pixels of every patch (squared error).
        warm_up: First steps without codebook, so that k-means starts from latents that mean something. Those of a
            fresh encoder lie in one narrow cone, where every code is much like the next.
        centre: Take the running mean of the targets off both sides; `decode_features` puts it back.
        optimizer: Optimiser and schedule.
    """

    model: SemanticVQTokenizer

    def __init__(
        self,
        tokenizer: str | None = None,
        preset: str = "semantic_vq_tiny",
        seed: int = 0,
        teacher: TowerConfig | None = None,
        teacher_weights: str | None = None,
        target: Literal["teacher", "pixels"] = "teacher",
        centre: bool = False,
        warm_up: int = 0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        if teacher is None and teacher_weights is not None:
            raise ValueError(f"teacher_weights={teacher_weights!r} has no effect without teacher; set both")
        if target not in ("teacher", "pixels") or (target == "pixels" and (centre or teacher is not None)):
            raise ValueError(
                f"target must be 'teacher' or 'pixels', the latter without teacher and centre, got {target!r}"
            )
        found = create_model(preset, seed=seed) if tokenizer is None else SemanticVQTokenizer.from_pretrained(tokenizer)
        if not isinstance(found, SemanticVQTokenizer):
            raise ValueError(f"preset {preset!r} builds a {type(found).__name__}, this module trains a tokenizer")
        super().__init__(found.train(), optimizer)
        self.target, self.centre, self.warm_up = target, centre, warm_up
        self.teacher: Teacher | None = None if teacher is None else tower_teacher(teacher, teacher_weights)
        if self.teacher is not None and self.teacher.width != found.config.target_width:
            raise ValueError(
                f"the teacher gives {self.teacher.width} channels, the tokenizer rebuilds {found.config.target_width}; "
                "set target_width to the teacher's"
            )

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of a batch; logs the cosine to the teacher, the commitment and how much of the codebook is in use."""
        pictures = batch["pictures"]
        pictures = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures
        if self.training and self.steps_done < self.warm_up:
            distance = self._distance(self.model.unquantised(pictures), batch | {"pictures": pictures})
            return distance, {"distance": distance}
        found = self.model(pictures)
        usage = self.model.usage if self.training else self.model.usage_of(found.codes)
        logs: dict[str, Tensor | float] = {"commitment": found.loss}
        logs |= {"code_usage": usage.used, "code_perplexity": usage.perplexity}
        distance = self._distance(found.features, batch | {"pictures": pictures})
        return distance + found.loss, logs | {"distance": distance, "cosine": 1 - distance}

    @property
    def steps_done(self) -> int:
        """Optimiser steps of this run."""
        return self.global_step if self._trainer is not None else 0

    def _distance(self, features: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Weighted cosine distance to the teacher, or the squared error of pixels."""
        if self.target == "pixels":
            return (features - patch_pixels(batch["pictures"], self.model.config.side)).square().mean()
        targets = self._targets(batch)
        return cosine_distance(features, targets, weights=batch.get("weights"), mean=self._mean(targets))

    def _targets(self, batch: dict[str, Tensor]) -> Tensor:
        if self.teacher is not None:
            return self.teacher(batch["pictures"])
        if "targets" not in batch:
            raise ValueError("the batch holds no `targets` and the module has no teacher; set model.init_args.teacher")
        return batch["targets"]

    @torch.no_grad()
    def _mean(self, targets: Tensor) -> Tensor | None:
        """The running mean, which training moves; all of the first batch, then one part in a hundred."""
        if not self.centre:
            return None
        mean = self.model.target_mean
        if self.training:
            found = targets.float().flatten(0, -2).mean(0)
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(found)
                found /= torch.distributed.get_world_size()
            mean.copy_(torch.where((mean == 0).all(), found, mean.lerp(found, 0.01)))
        return mean

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The teacher is frozen and rebuilt from its name; its weights stay out of the checkpoint."""
        state = checkpoint["state_dict"]
        for key in [key for key in state if key.startswith("teacher.")]:
            del state[key]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the teacher's own weights where a strict load looks for them."""
        own = self.state_dict()
        checkpoint["state_dict"] |= {key: own[key] for key in own if key.startswith("teacher.")}
