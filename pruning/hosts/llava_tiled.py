"""LLaVA-NeXT and LLaVA-OneVision: an overview plus a grid of tiles, packed without the padded border.

Every view is pruned on its own. Tokens of the tiles are then read in raster order of the whole picture, those over the
padded border are left out, and the overview comes first. No line-break tokens are inserted between rows of a pruned
picture (there are no whole rows left); a picture of a single view ends with one, as in the unpruned model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from mm.pruning.hosts.base import Picture, no_text_guide
from mm.pruning.hosts.llava import LlavaHost, first_places

if TYPE_CHECKING:
    from mm.pruning.base import Pruned, Pruner


class TiledHost(LlavaHost):
    """transformers' `LlavaNextForConditionalGeneration` and `LlavaOnevisionForConditionalGeneration`.

    Deviation: LLaVA-OneVision shrinks very large pictures by interpolation before packing; pruned pictures skip that,
    their tokens are few already.
    """

    layout = "tiled"
    feature_inputs = ("pixel_values", "image_sizes", "batch_num_images")

    def pictures(self, pruner: Pruner, inputs: dict[str, Any]) -> tuple[list[Picture], list[Pruned]] | None:
        sizes = [tuple(size) for size in torch.as_tensor(inputs["image_sizes"]).tolist()]
        counts = self._views(sizes, inputs.get("batch_num_images"))
        pixel_values = inputs["pixel_values"]
        if pixel_values.ndim == 5:
            pixel_values = torch.cat([views[:count] for views, count in zip(pixel_values, counts, strict=True)])
        targets = [target for count in counts for target in pruner.view_targets(count, self.layout)]
        if self.covers_all(pruner, targets):
            return None
        no_text_guide(pruner)
        pruned = self.encode(pruner, pixel_values, targets)
        features, index = self.project(pruned)
        pictures, start = [], 0
        for size, count in zip(sizes, counts, strict=True):
            views = slice(start, start + count)
            packed = self._pack(features[views], index[views], size)
            pictures.append(Picture(packed, first_places(packed), self._stock_count(size, count)))
            start += count
        return pictures, [pruned]

    def _views(self, sizes: list[tuple[int, int]], batch_num_images: Any) -> list[int]:
        """Views of each picture; several pictures in one OneVision prompt are not tiled."""
        config = self.core.config
        tiled = [True] * len(sizes)
        if batch_num_images is not None:
            tiled = [number == 1 for number in torch.as_tensor(batch_num_images).tolist() for _ in range(number)]
        return [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size) if cut else 1
            for size, cut in zip(sizes, tiled, strict=True)
        ]

    def _grid(self, size: tuple[int, int]) -> tuple[int, int, int]:
        """Rows and columns of tiles, and patches along the side of one."""
        config = self.core.config
        vision = config.vision_config
        rows, columns = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, vision.image_size)
        return rows, columns, vision.image_size // vision.patch_size

    def _pack(self, features: list[Tensor], index: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Views of one picture -> its tokens in reading order, (n, D)."""
        newline = self.core.image_newline
        if len(features) == 1:
            return torch.cat([features[0], newline[None].to(features[0])])
        rows, columns, side = self._grid(size)
        raster = torch.arange(rows * columns * side * side).view(1, rows * side, columns * side)
        inside = torch.zeros(raster.numel(), dtype=torch.bool)
        inside[unpad_image(raster, size).flatten()] = True
        inside = inside.to(features[0].device)
        tokens, order = [], []
        for view, (values, places) in enumerate(zip(features[1:], index[1:], strict=True)):
            row, column = view // columns * side + places // side, view % columns * side + places % side
            number = torch.where(places < 0, -1, row * (columns * side) + column)
            shown = (number < 0) | inside[number.clamp(min=0)]
            tokens.append(values[shown])
            order.append(number[shown])
        reading = torch.cat(order).sort(stable=True).indices
        return torch.cat([features[0], torch.cat(tokens)[reading]])

    def _stock_count(self, size: tuple[int, int], views: int) -> int:
        """Tokens of the unpruned picture, line breaks included, by the model's own packing on the meta device."""
        vision = self.core.config.vision_config
        per_view = (vision.image_size // vision.patch_size) ** 2
        empty = torch.empty(views, per_view, 1, device="meta")
        options: dict[str, Any] = {"image_newline": torch.empty(1, device="meta")}
        if hasattr(self.core.config, "vision_aspect_ratio"):
            options["vision_aspect_ratio"] = self.core.config.vision_aspect_ratio
        else:
            options["vision_feature_select_strategy"] = "default"
        packed, _ = self.core.pack_image_features([empty], torch.tensor([size]), **options)
        return len(packed[0])
