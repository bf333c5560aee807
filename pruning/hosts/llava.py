"""LLaVA-1.5: one square view per picture, features straight into the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mm.pruning.hosts.base import Host, Picture
from mm.pruning.ragged import unpad_rows

if TYPE_CHECKING:
    from mm.pruning.base import Pruned, Pruner


class LlavaHost(Host):
    """transformers' `LlavaForConditionalGeneration`."""

    layout = "plain"

    @property
    def tower(self) -> nn.Module:
        return self.core.vision_tower

    @property
    def layer(self) -> int:
        """Hidden state that the model reads.

        Raises:
            ValueError: it reads several at once.
        """
        layer = self.vlm.config.vision_feature_layer
        if not isinstance(layer, int):
            raise ValueError(f"vision_feature_layer={layer}: pruning reads one layer; several cannot be pruned alike")
        return layer

    @property
    def has_cls(self) -> bool:
        """Whether the encoder has a class token."""
        return getattr(self.tower.config, "model_type", "") == "clip_vision_model"

    @property
    def takes_class_token(self) -> bool:
        """Whether the class token goes to the language model, as one of the target's tokens."""
        return self.has_cls and self.vlm.config.vision_feature_select_strategy == "full"

    @property
    def loses_first_patch(self) -> bool:
        """Whether the model cuts off a class token that its encoder does not have, and so the first patch."""
        return not self.has_cls and self.vlm.config.vision_feature_select_strategy == "default"

    @property
    def extra_tokens(self) -> int:
        """Tokens of an unpruned view beyond its patches."""
        return int(self.takes_class_token) - int(self.loses_first_patch)

    def encode(self, pruner: Pruner, pixel_values: Tensor, targets: list[int]) -> Pruned | None:
        """Encode views (V, 3, H, W) with one target each; None when nothing would be dropped."""
        if self.takes_class_token:
            targets = [max(1, target - 1) for target in targets]
        config = self.tower.config
        if min(targets) >= (config.image_size // config.patch_size) ** 2 and not pruner.adaptive:
            return None
        return pruner.encode(self.tower, pixel_values, layer=self.layer, targets=targets)

    def project(self, pruned: Pruned) -> tuple[list[Tensor], list[Tensor]]:
        """Per view: projected tokens (n, D), class token first where the model wants it, and raster numbers (n,)."""
        tokens, index, keep = pruned.tokens, pruned.keep_indices, pruned.keep
        if self.takes_class_token:
            assert pruned.cls is not None
            tokens = torch.cat([pruned.cls[:, None], tokens], dim=1)
            index = torch.cat([index.new_full((len(index), 1), -1), index], dim=1)
            keep = None if keep is None else torch.cat([keep.new_ones(len(keep), 1), keep], dim=1)
        features, places = unpad_rows(self.project_tokens(tokens), keep), unpad_rows(index, keep)
        if self.loses_first_patch:
            features = [row[place != 0] for row, place in zip(features, places, strict=True)]
            places = [place[place != 0] for place in places]
        return features, places

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """Encoder features (V, n, ...) -> tokens of the language model (V, n, D)."""
        return self.core.multi_modal_projector(tokens)

    def pictures(self, pruner: Pruner, inputs: dict[str, Any]) -> tuple[list[Picture], list[Pruned]] | None:
        views = inputs["pixel_values"]
        target = pruner.view_targets(1, self.layout)[0]
        pruned = self.encode(pruner, views, [target] * len(views))
        if pruned is None:
            return None
        stock = pruned.scores.shape[1] + self.extra_tokens
        features, _ = self.project(pruned)
        # positions are counted anew, so it does not matter which placeholders stay
        return [Picture(row, first_places(row), stock) for row in features], [pruned]


def first_places(features: Tensor) -> Tensor:
    """Placeholders 0..n-1 for n tokens."""
    return torch.arange(len(features), device=features.device)
