"""LLaVA-1.5: one square view per picture, features straight into the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mm.pruning.hosts.base import Host, Picture
from mm.pruning.layout import Layout
from mm.pruning.prompt import image_numbers
from mm.pruning.ragged import unpad_rows
from mm.pruning.text_guided import CANDIDATES, reselect

if TYPE_CHECKING:
    from mm.pruning.base import Pruned, Pruner


class LlavaHost(Host):
    """transformers' `LlavaForConditionalGeneration`."""

    layout: Layout = "plain"

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

    @property
    def patches(self) -> int:
        """Patches of one view."""
        config: Any = self.tower.config
        return (config.image_size // config.patch_size) ** 2

    def covers_all(self, pruner: Pruner, targets: list[int]) -> bool:
        """Whether these targets drop nothing, so that the model may run as it is."""
        return not pruner.adaptive and min(targets) - self.takes_class_token >= self.patches

    def encode(self, pruner: Pruner, pixel_values: Tensor, targets: list[int]) -> Pruned:
        """Encode views (V, 3, H, W) with one target each; a class token that goes along counts."""
        targets = [max(1, target - self.takes_class_token) for target in targets]
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
        if self.covers_all(pruner, [target]):
            return None
        candidates = round(CANDIDATES * target) if pruner.text_share else target
        pruned = self.encode(pruner, views, [candidates] * len(views))
        stock = self.patches + self.extra_tokens
        features, places = self.project(pruned)
        if pruner.text_share:
            words = self.words(inputs, [stock] * len(views))
            scores = [row[place.clamp(min=0)] for row, place in zip(pruned.scores, places, strict=True)]
            rows = zip(features, scores, words, strict=True)
            features = [row[reselect(row, rated, text, target, pruner.text_share)] for row, rated, text in rows]
        # positions are counted anew, so it does not matter which placeholders stay
        return [Picture(row, first_places(row), stock) for row in features], [pruned]

    def words(self, inputs: dict[str, Any], counts: list[int]) -> list[Tensor]:
        """Input embeddings of the text around each picture, (W, D)."""
        ids = inputs["input_ids"]
        numbers = image_numbers(ids, self.image_token, counts)
        real = numbers < 0 if inputs.get("attention_mask") is None else (numbers < 0) & inputs["attention_mask"].bool()
        rows = [int((numbers == picture).any(dim=1).int().argmax()) for picture in range(len(counts))]
        return [self.embed(ids[row][real[row]]) for row in rows]

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of text ids (W,) -> (W, D)."""
        return self.vlm.get_input_embeddings()(ids)


def first_places(features: Tensor) -> Tensor:
    """Placeholders 0..n-1 for n tokens."""
    return torch.arange(len(features), device=features.device)
