"""The vision towers of Qwen2-VL and Qwen2.5-VL: pictures of any size, rotary positions, 2x2 merging, windows.

Pictures (and every time step of a video) are rows of a padded batch. Patches of one 2x2 square follow one another, so a
unit of four patches is one token of the language model. Qwen2.5-VL attends inside windows in most blocks; there every
patch owns a fixed slot of its window, and a dropped patch leaves its slot empty: no sorting, no N x N mask.
Dims: B rows, n units, u = 4 patches per unit, W windows, S slots per window, H heads, d head channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.vision_utils import get_vision_position_ids

from mm.pruning.ragged import gather_rows, pad_rows
from mm.pruning.scores import Heads
from mm.pruning.towers.base import PrunableTower, Stream, join_heads, split_heads


class QwenTower(PrunableTower):
    """The tower of Qwen2-VL or Qwen2.5-VL.

    Args:
        module: `model.visual`.
        merge: "group" keeps whole 2x2 squares; "patch" drops single patches and merges any four survivors that happen
            to follow one another, as the published code does.
    """

    has_cls = False
    num_prefix = 0

    def __init__(self, module: Any, merge: str = "group") -> None:
        super().__init__(module, len(module.blocks))
        self.group = int(module.spatial_merge_size) ** 2
        self.unit = self.group if merge == "group" else 1
        self.windowed = hasattr(module, "fullatt_block_indexes")

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.module.blocks

    def start(self, pixel_values: Tensor, **inputs: Any) -> Stream:
        """Packed patches (all patches of all pictures, C) and `image_grid_thw` (pictures, 3) -> one row per time step.

        Raises:
            ValueError: no grid, or a grid that does not fit the patches.
        """
        grid = inputs.get("image_grid_thw")
        if grid is None:
            raise ValueError("a Qwen-VL tower needs image_grid_thw beside pixel_values; take both from the processor")
        sizes = [(h, w) for t, h, w in grid.tolist() for _ in range(t)]
        lengths = [h * w for h, w in sizes]
        if sum(lengths) != len(pixel_values):
            raise ValueError(f"image_grid_thw describes {sum(lengths)} patches, pixel_values holds {len(pixel_values)}")
        module = self.module
        hidden = module.patch_embed(pixel_values.type(module.blocks[0].norm1.weight.dtype))
        places = get_vision_position_ids(grid, module.spatial_merge_size)  # (all patches, 2)
        cos, sin = module.rotary_pos_emb(hidden, places)
        rows, keep = pad_rows(hidden.split(lengths))
        tables = {"cos": pad_rows(cos.split(lengths))[0], "sin": pad_rows(sin.split(lengths))[0]}
        slots = 0
        if self.windowed:
            tables["slot"], slots = self._slots(places.to(hidden.device), sizes)
        total = rows.shape[1] // self.unit
        index = torch.arange(total, device=rows.device).repeat(len(rows), 1)
        if keep is not None:
            keep = keep[:, :: self.unit]
            index = index.masked_fill(~keep, total)
        return Stream(rows, index, keep, tables, unit=self.unit, slots=slots, total=total)

    def _slots(self, places: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, int]:
        """Slot of each patch in the list of windows, (B, n u), and the number of slots with one spare window."""
        side, rows, windows = self._window_side(), [], 0
        for (height, width), place in zip(sizes, places.split([h * w for h, w in sizes]), strict=True):
            row, column = place.unbind(-1)
            across = -(-width // side)
            windows = max(windows, across * -(-height // side))
            window = (row // side) * across + column // side
            rows.append(window * side**2 + (row % side) * side + column % side)
        return pad_rows(rows)[0], (windows + 1) * side**2

    def _window_side(self) -> int:
        """Patches along one side of a window."""
        module = self.module
        return module.window_size // module.patch_size // module.spatial_merge_size * module.spatial_merge_size

    def heads(self, layer: int, stream: Stream) -> Heads:
        block: Any = self.blocks[layer]
        attention = block.attn
        projected = attention.qkv(block.norm1(stream.hidden)).chunk(3, dim=-1)
        query, key, value = (split_heads(part, attention.num_heads) for part in projected)
        cos, sin = (rearrange(stream.tables[name].float(), "b n d -> b 1 n d") for name in ("cos", "sin"))
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        return Heads(query, key, value, attention.scaling)

    def mix(self, layer: int, stream: Stream, heads: Heads) -> Tensor:
        if not self.windowed or layer in self.module.fullatt_block_indexes:
            return super().mix(layer, stream, heads)
        return window_attention(heads, stream.tables["slot"], stream.slots, self._window_side() ** 2, stream.patch_keep)

    def finish_block(self, layer: int, stream: Stream, mixed: Tensor) -> Tensor:
        block: Any = self.blocks[layer]
        hidden = stream.hidden + block.attn.proj(join_heads(mixed))
        return hidden + block.mlp(block.norm2(hidden))

    def finish(self, stream: Stream) -> tuple[Tensor, Tensor | None]:
        """Tokens of the language model, (B, tokens, D'); in "patch" mode four neighbours in the list are one token."""
        length = stream.hidden.shape[1]
        if length % self.group:
            raise ValueError(f"{length} patches are left, the merger needs a multiple of {self.group}")
        merged = self.module.merger(stream.hidden.flatten(0, 1))
        return merged.unflatten(0, (len(stream.hidden), length // self.group)), None


def _rotate(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions over the whole head: (B, H, n, d) with tables (B, 1, n, d); computed in float32."""
    first, second = values.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (values.float() * cos + turned * sin).to(values.dtype)


def window_attention(heads: Heads, slot: Tensor, slots: int, size: int, keep: Tensor | None) -> Tensor:
    """Attention inside windows of which some slots are empty: (B, H, n, d).

    Args:
        heads: Of the patches that are left.
        slot: Place of each patch in the list of all windows' slots, (B, n) int64.
        slots: Length of that list; its last window is spare and takes the padding.
        size: Slots per window (S).
        keep: True where a patch is real, (B, n).
    """
    real = torch.ones_like(slot, dtype=torch.bool) if keep is None else keep
    slot = slot.masked_fill(~real, slots - 1)
    batch, num_heads, _, channels = heads.query.shape
    where = rearrange(slot, "b n -> b 1 n 1").expand(batch, num_heads, -1, channels)

    def seated(values: Tensor) -> Tensor:  # (B, H, n, d) -> (B W, H, S, d)
        seats = values.new_zeros(batch, num_heads, slots, channels).scatter(2, where, values)
        return rearrange(seats, "b h (w s) d -> (b w) h s d", s=size)

    taken = torch.zeros(batch, slots, dtype=torch.bool, device=slot.device).scatter(1, slot, real)
    taken = rearrange(taken, "b (w s) -> (b w) 1 1 s", s=size)
    taken = taken | ~taken.any(dim=-1, keepdim=True)  # an empty window: any value will do, but never 0 / 0
    query, key, value = (seated(part) for part in (heads.query, heads.key, heads.value))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=taken, scale=heads.scale)
    mixed = rearrange(mixed, "(b w) h s d -> b (w s) h d", b=batch)
    return rearrange(gather_rows(mixed, slot), "b n h d -> b h n d")
