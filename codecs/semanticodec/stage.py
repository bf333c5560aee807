"""What the training stages of the codec share: where they start and which part they train.

Every stage trains one part of a whole codec and leaves a whole codec behind, so that the next stage starts from the
folder of the last: autoencoder and vocoder in any order, then the joint stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mm.checkpoint import create_model
from mm.codecs.semanticodec.codec import SemantiCodec
from mm.codecs.semanticodec.mel import LogMel
from mm.training.module import OptimizerConfig, TrainingModule

HELD_OUT_SEED = 0
"""Validation draws its noise and crops from this seed, so that two runs of it agree."""


def start_codec(codec: str | None, preset: str, seed: int) -> SemantiCodec:
    """The codec that a stage starts from.

    Args:
        codec: Trained weights: a shipped name, a folder (of the stage before) or a hub id; none takes random ones.
        preset: Sizes, if `codec` is none.
        seed: Of the random weights.

    Raises:
        ValueError: the preset is of another system.
    """
    found = SemantiCodec.from_pretrained(codec) if codec is not None else create_model(preset, seed=seed)
    if not isinstance(found, SemantiCodec):
        raise ValueError(f"preset {preset!r} builds a {type(found).__name__}, this stage trains a SemantiCodec")
    return found


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside the block, gradients flow through `module` and not into its parameters."""
    wanted = [parameter.requires_grad for parameter in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, before in zip(module.parameters(), wanted, strict=True):
            parameter.requires_grad_(before)


class CodecStage(TrainingModule):
    """Base of the stages.

    Args:
        model: The whole codec.
        parts: Modules of it that are trained; everything else is frozen.
        optimizer: Optimiser and schedule.
    """

    model: SemantiCodec

    def __init__(self, model: SemantiCodec, parts: list[nn.Module], optimizer: OptimizerConfig | None) -> None:
        super().__init__(model.train(), optimizer)
        model.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)
        self.log_mel = LogMel(model.config.decoder.vae.mel_bins)

    def random(self) -> torch.Generator | None:
        """Source of noise and crops: the run's own in training, a fixed one in evaluation (on this device)."""
        return None if self.training else torch.Generator(device=self.device).manual_seed(HELD_OUT_SEED)

    def waves(self, batch: dict[str, Any]) -> Tensor:
        """The samples of whole segments, (B, S), without the encoder's look-ahead.

        Raises:
            ValueError: the batch is shorter than a segment of this codec.
        """
        size = self.model.config.decoder.window_samples
        if batch["waves"].shape[-1] < size:
            raise ValueError(f"this codec has segments of {size} samples, the data gives {batch['waves'].shape[-1]}")
        return batch["waves"][:, :size]  # type: ignore[no-any-return]

    def mel(self, batch: dict[str, Any]) -> Tensor:
        """Log-mel spectrogram of whole segments, (B, 1, T, F)."""
        return self.log_mel(self.waves(batch))[:, None]  # type: ignore[no-any-return]
