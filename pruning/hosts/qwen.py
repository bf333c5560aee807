"""Qwen2-VL and Qwen2.5-VL: pictures of any size, and positions in three dimensions that survive pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mm.pruning.hosts.base import Host, Picture, no_text_guide
from mm.pruning.ragged import unpad_rows

if TYPE_CHECKING:
    from mm.pruning.base import Pruned, Pruner


class QwenHost(Host):
    """transformers' `Qwen2VLForConditionalGeneration` and `Qwen2_5_VLForConditionalGeneration`.

    Kept tokens keep the position ids of their own squares; text keeps its ids too, so nothing shifts while decoding.
    """

    layout = "native"
    multimodal_positions = True
    feature_inputs = ("pixel_values", "image_grid_thw")
    unpruned_only = ("mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")

    @property
    def tower(self) -> nn.Module:
        return self.core.visual

    def text_positions(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Positions (3, B, L) of the unpruned prompt, from the grid.

        Raises:
            ValueError: `mm_token_type_ids` is missing; without it Qwen2.5-VL would silently use text positions.
        """
        if inputs.get("position_ids") is not None:
            return inputs
        if inputs.get("mm_token_type_ids") is None:
            raise ValueError(
                "Qwen-VL needs mm_token_type_ids to place pictures; take all inputs from its processor, or pass "
                "position_ids yourself"
            )
        positions, _ = self.core.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=inputs.get("attention_mask"),
        )
        return {**inputs, "position_ids": positions}

    def pictures(self, pruner: Pruner, inputs: dict[str, Any]) -> tuple[list[Picture], list[Pruned]] | None:
        grid = inputs["image_grid_thw"]
        group = self.core.visual.spatial_merge_size**2
        sizes = [h * w // group for t, h, w in grid.tolist() for _ in range(t)]
        target = pruner.view_targets(1, self.layout)[0]
        if all(size <= target for size in sizes) and not pruner.adaptive:
            return None
        no_text_guide(pruner)
        pruned = pruner.encode(self.tower, inputs["pixel_values"], image_grid_thw=grid, targets=[target] * len(sizes))
        features = unpad_rows(pruned.tokens, pruned.keep)
        merged_patches = pruned.keep_indices.shape[1] != pruned.tokens.shape[1]
        index = [None] * len(sizes) if merged_patches else unpad_rows(pruned.keep_indices, pruned.keep)
        rows = [_placed(*row) for row in zip(features, index, sizes, strict=True)]
        pictures, start = [], 0
        for steps in grid[:, 0].tolist():  # a picture has one time step; more are joined in order
            part = rows[start : start + steps]
            offsets = [sum(sizes[start : start + step]) for step in range(steps)]
            places = torch.cat([row[1] + offset for row, offset in zip(part, offsets, strict=True)])
            count = sum(sizes[start : start + steps])
            pictures.append(Picture(torch.cat([row[0] for row in part]), places, count))
            start += steps
        return pictures, [pruned]


def _placed(features: Tensor, index: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """Give every token a place of its own and sort by it.

    Single patches that were merged across squares have none (`index` is None): they take the first places, as the
    published code does. A token without a place (-1) takes the first one that is free.
    """
    if index is None:
        return features, torch.arange(len(features), device=features.device)
    free = torch.ones(size, dtype=torch.bool, device=index.device)
    free[index[index >= 0]] = False
    places = index.clone()
    places[index < 0] = free.nonzero()[:, 0][: int((index < 0).sum())]
    order = places.argsort()
    return features[order], places[order]
