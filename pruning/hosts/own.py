"""Our own concatenation model: pruned pictures between the words of any backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mm.pruning.hosts.base import Picture
from mm.pruning.hosts.llava import LlavaHost

if TYPE_CHECKING:
    from mm.pruning.base import Pruned, Pruner


class OwnHost(LlavaHost):
    """`mm.vlm.VisionLanguageModel`."""

    layout = "plain"
    feature_inputs = ("pixel_values", "visual_counts")

    @property
    def core(self) -> Any:
        return self.vlm

    @property
    def tower(self) -> nn.Module:
        return self.vlm.tower

    @property
    def language_model(self) -> nn.Module:
        return self.vlm.backbone.decoder

    @property
    def blocks(self) -> nn.ModuleList:
        return self.vlm.backbone.layers

    @property
    def image_token(self) -> int:
        return int(self.vlm.config.image_token_id)

    @property
    def pad_token(self) -> int:
        return 0 if self.image_token else 1

    @property
    def has_cls(self) -> bool:
        return bool(self.vlm.tower.has_cls)

    @property
    def takes_class_token(self) -> bool:
        return self.has_cls and self.vlm.config.feature_select == "all"

    @property
    def loses_first_patch(self) -> bool:
        return not self.has_cls and self.vlm.config.feature_select == "drop_first"

    @property
    def patches(self) -> int:
        return int(self.vlm.tower.num_tokens)

    @property
    def layer(self) -> int:
        return int(self.vlm.tower.config.layer)

    def embed(self, ids: Tensor) -> Tensor:
        return self.vlm.backbone.embed(ids)

    def project_tokens(self, tokens: Tensor) -> Tensor:
        vlm = self.vlm
        projected = vlm.projector(tokens.to(next(vlm.projector.parameters()).dtype))
        if vlm.config.feature_scale == "sqrt_width":
            projected = projected * torch.tensor(vlm.backbone.width**0.5, dtype=projected.dtype)
        return projected

    def pictures(self, pruner: Pruner, inputs: dict[str, Any]) -> tuple[list[Picture], list[Pruned]] | None:
        return None if not len(inputs["pixel_values"]) else super().pictures(pruner, inputs)
