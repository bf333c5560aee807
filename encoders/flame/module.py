"""Training of the image encoder against text embeddings that were computed once; no language model in sight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mm.encoders.flame.config import FlameVisionConfig, flame_config
from mm.encoders.flame.loss import Exchange, multi_positive_nce_loss, multi_positive_sigmoid_loss
from mm.encoders.flame.model import FlameImageEncoder
from mm.encoders.flame.tower import TextTowerConfig
from mm.training.module import OptimizerConfig, TrainingModule

NCE_SCALE = 1 / 0.07
"""Start of the scale under the NCE loss."""


class FlameModule(TrainingModule):
    """Train a `FlameImageEncoder`; batches hold `pixel_values` (B, 3, H, W) and `texts` (B, P, D).

    Weight decay reaches matrices and position embeddings, never biases, norms and the scale of the logits.

    Args:
        preset: Name of the sizes, see `mm.encoders.flame.flame_config`.
        vision: Sizes of one's own instead of a preset.
        text: The text tower that the embeddings come from, for the saved config.
        loss: "sigmoid" (released recipe) or "nce".
        exchange: How processes see each other's texts under the sigmoid loss: "ring" or "gather".
        chunk: Images per block of logits; none takes all at once.
        crop: Smallest part of a picture that a random crop keeps, 1 = no crop.
        seed: Draws the weights.
        optimizer: Optimiser and schedule.
    """

    model: FlameImageEncoder

    def __init__(
        self,
        preset: str = "tiny",
        vision: FlameVisionConfig | None = None,
        text: TextTowerConfig | None = None,
        loss: Literal["sigmoid", "nce"] = "sigmoid",
        exchange: Exchange = "ring",
        chunk: int | None = None,
        crop: float = 0.9,
        seed: int = 0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        if loss not in ("sigmoid", "nce"):
            raise ValueError(f"loss must be 'sigmoid' or 'nce', got {loss!r}")
        if not 0 < crop <= 1:
            raise ValueError(f"crop must lie in (0, 1], got {crop}")
        config = vision if vision is not None else flame_config(preset)
        config = config if text is None else replace(config, text=text)
        if loss == "nce":
            scale = torch.tensor(NCE_SCALE).log().item()
            config = replace(config, init_logit_scale=scale, init_logit_bias=None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = FlameImageEncoder(config)
        super().__init__(model.train(), optimizer)
        self.loss, self.exchange, self.chunk, self.crop = loss, exchange, chunk, crop

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Any]]:
        """The contrastive loss, and how often a picture is nearest to a text of its own inside the batch."""
        pixels, texts = batch["pixel_values"], batch["texts"]
        images = self.model(random_crop(pixels, self.crop) if self.training and self.crop < 1 else pixels)
        scale = self.model.logit_scale.exp()
        if self.loss == "nce":
            loss = multi_positive_nce_loss(images, texts, scale)
        else:
            bias = 0.0 if self.model.logit_bias is None else self.model.logit_bias
            loss = multi_positive_sigmoid_loss(images, texts, scale, bias, exchange=self.exchange, chunk=self.chunk)
        with torch.no_grad():
            nearest = (images @ texts.flatten(0, 1).to(images).T).argmax(dim=1) // texts.shape[1]
            right = (nearest == torch.arange(len(images), device=images.device)).float().mean()
        return loss, {"image_to_text": right, "scale": scale.detach()}

    def on_train_batch_end(self, *_: Any) -> None:
        """Keep the scale in its range."""
        self.model.clamp_scale()


def random_crop(pixels: Tensor, least: float) -> Tensor:
    """A random square part of every picture, resized to the old size; `least` is the smallest share of the area."""
    count, device = len(pixels), pixels.device
    side = (least + (1 - least) * torch.rand(count, device=device)).sqrt()
    shift = (1 - side)[:, None] * (2 * torch.rand(count, 2, device=device) - 1)  # centre of the part, (B, 2)
    zero = torch.zeros_like(side)
    rows = [torch.stack([side, zero, shift[:, 0]], dim=1), torch.stack([zero, side, shift[:, 1]], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1).to(pixels), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
