"""What pruning saves, counted: encoder and language model, 2 FLOPs per multiply-accumulate.

The published table (paper section on efficiency) gives total TFLOPs without a formula. The accounting that fits it is
encoder + prefill of the language model, attention counted in full, no embeddings, no heads:

    encoder block       12 D^2 n + 2 n^2 D            multiply-accumulates for n tokens of width D
    language block      4 n D^2 + 2 n^2 D + 3 n D m   (multi-head attention, gated feed-forward of m)

Three numbers were not published and are inferred here, see `TEXT_TOKENS`, `ENTROPY_RATIO` and `NEXT_TOKENS`.
Dims: n tokens, D width, m feed-forward width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mm.metrics.shapes import VICUNA_7B, DecoderShape
from mm.pruning.peers.language_peer import average_per_block
from mm.pruning.schedule import constant_ratio_counts, cut_layers

TEXT_TOKENS = 61
"""Text tokens of a POPE prompt with the conversation frame: the length that gives the published 8.82 for 576 tokens."""
ENTROPY_RATIO = 0.9
"""Mean entropy ratio of the encoder's attention: not published; 0.9 fits both hosts, 1.0 is the upper bound."""
NEXT_TOKENS = 2020
"""Mean visual tokens of LLaVA-NeXT on these pictures: the published 31.03 does not fit 2880, which is the upper bound
without the padded border taken off (44.5 TFLOP); it fits about 2020."""
BORDER = 0.75
"""Share of the tile tokens that survive that border on 4:3 pictures."""


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """Sizes of the vision encoder."""

    depth: int = 24
    """Blocks."""
    width: int = 1024
    """Channels (D)."""
    patches: int = 576
    """Patches of a picture, without class token."""
    feature_blocks: int = 23
    """Blocks that the features need."""
    prefix: int = 1
    """Class and register tokens."""

    def block_macs(self, tokens: int) -> int:
        """Multiply-accumulates of one block, feed-forward four times as wide."""
        return 12 * self.width**2 * tokens + 2 * tokens**2 * self.width

    def full_flops(self, blocks: int | None = None) -> int:
        """FLOPs of one unpruned picture; all blocks by default.

        Example:
            >>> round(EncoderShape().full_flops() / 1e12, 3)
            0.381
        """
        return 2 * (self.depth if blocks is None else blocks) * self.block_macs(self.patches + self.prefix)

    def pruned_flops(self, counts: Sequence[int], cuts: Sequence[int]) -> int:
        """FLOPs of one picture whose patches leave behind the blocks `cuts`; blocks behind the features do not run."""
        left, total = self.patches, 0
        for block in range(self.feature_blocks):
            total += self.block_macs(left + self.prefix)
            left = counts[list(cuts).index(block)] if block in cuts else left
        return 2 * total


CLIP_L = EncoderShape()
"""CLIP ViT-L/14 at 336 pixels, read one block before its end."""


def encoder_flops(target: int, ratio: float = ENTROPY_RATIO, shape: EncoderShape = CLIP_L) -> int:
    """FLOPs of FlowCut's encoder stage if every block had the same entropy ratio."""
    cuts = cut_layers(shape.feature_blocks - 2, 2)
    return shape.pruned_flops(constant_ratio_counts(shape.patches, target, cuts, ratio), cuts)


def language_flops(tokens_per_block: Sequence[int], shape: DecoderShape = VICUNA_7B) -> int:
    """FLOPs of the prompt's pass through blocks that see different numbers of tokens; no head."""
    weights = shape.linear_weights // shape.layers
    width = shape.heads * shape.head_width
    return sum(2 * weights * tokens + 4 * width * tokens**2 for tokens in tokens_per_block)


def llava_flops(visual: int, encoder: int, *, early: int | None = None, early_blocks: int = 2) -> int:
    """Encoder plus prompt.

    Args:
        visual: Visual tokens in the language model (behind its own cut, if it has one).
        encoder: FLOPs of the encoder.
        early: Visual tokens in front of that cut.
        early_blocks: Blocks in front of it.
    """
    depth = VICUNA_7B.layers
    first = 0 if early is None else early_blocks
    blocks = [(early or visual) + TEXT_TOKENS] * first + [visual + TEXT_TOKENS] * (depth - first)
    return encoder + language_flops(blocks)


def rows() -> list[dict[str, Any]]:
    """Rows of `mm bench flops --system flowcut`; `published` in TFLOP where the paper has a number."""
    vit = CLIP_L.full_flops()
    base = llava_flops(576, vit)
    next_base = llava_flops(NEXT_TOKENS, 5 * vit)
    table = [_row("LLaVA-1.5-7B, 576 tokens, unpruned", base, base, 8.82)]
    for target, published in ((192, None), (128, None), (64, 1.95)):
        ours = llava_flops(target, encoder_flops(target))
        table.append(_row(f"LLaVA-1.5-7B, FlowCut {target}", ours, base, published))
    table.append(_row("LLaVA-1.5-7B, VisionZip 64", llava_flops(64, vit), base, 2.03))
    table.append(_row(f"LLaVA-NeXT-7B, {NEXT_TOKENS} tokens (5 views), unpruned", next_base, next_base, 31.03))
    for target, published in ((640, None), (320, None), (160, 4.29)):
        per_view = target // 2
        early = round(per_view * (1 + 4 * BORDER))
        ours = llava_flops(target, 5 * encoder_flops(per_view), early=early)
        table.append(_row(f"LLaVA-NeXT-7B, FlowCut {target}", ours, next_base, published))
    upper = llava_flops(2880, 5 * vit)
    table.append(_row("LLaVA-NeXT-7B, 2880 tokens (upper bound), unpruned", upper, upper, None))
    sparse = average_per_block(576, (66, 30, 17), (2, 6, 16), VICUNA_7B.layers)
    table.append(_row(f"LLaVA-1.5-7B, SparseVLM 64 ({sparse:.0f} tokens on average)", _sparse(vit), base, 2.31))
    return table


def _sparse(encoder: int) -> int:
    levels = [576] * 2 + [66] * 4 + [30] * 10 + [17] * 16
    return encoder + language_flops([level + TEXT_TOKENS for level in levels])


def _row(setting: str, ours: int, baseline: int, published: float | None) -> dict[str, Any]:
    tera = ours / 1e12
    row: dict[str, Any] = {
        "setting": setting,
        "ours_tflop": round(tera, 2),
        "baseline_tflop": round(baseline / 1e12, 2),
        "saving": round(1 - ours / baseline, 3),
    }
    if published is not None:
        row |= {"published_tflop": published, "difference": f"{100 * (tera / published - 1):+.1f} %"}
    return row
