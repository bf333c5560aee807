"""MONAI's Swin Transformer on the fused window attention: same weights, same keys, same numbers, less time and memory.

MONAI (monai.networks.nets.swin_unetr, 1.5 and later) pads, rolls, cuts and masks every block's input and keeps all
score matrices for the backward pass. Swapping the classes of its blocks and stages replaces that by
`shifted_window_attention`; parameters, buffers and hooks are not touched, and `undo()` swaps back.
"""

from __future__ import annotations

from functools import cache
from types import TracebackType
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from mm.extras import require
from mm.kernels.window_attention import shifted_window_attention


class ReplacedWindowAttention:
    """What `replace_window_attention` did; a context manager whose exit, like `undo`, restores the classes."""

    def __init__(self, swapped: list[tuple[nn.Module, type[nn.Module]]]) -> None:
        self._swapped = swapped

    @property
    def blocks(self) -> int:
        """Attention blocks that run on the fused kernel now."""
        return sum(hasattr(module, "attn") for module, _ in self._swapped)

    def undo(self) -> None:
        """Give every module its own class back; calling it twice does no harm."""
        while self._swapped:
            module, original = self._swapped.pop()
            module.__class__ = original
            module.__dict__.pop("fused_options", None)

    def __enter__(self) -> ReplacedWindowAttention:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.undo()


def replace_window_attention(
    model: nn.Module, *, legacy_index: bool = True, impl: str = "auto"
) -> ReplacedWindowAttention:
    """Let every Swin block inside a MONAI model attend with `shifted_window_attention`.

    Args:
        model: A `SwinTransformer`, a `SwinUNETR`, or anything that holds one; 2-D and 3-D. Stages that use Hyena
            blocks are left as they are.
        legacy_index: Bias of clipped windows as MONAI looks it up (see `relative_position_bias`). True gives MONAI's
            numbers; False is geometrically right and for models trained from the start with it.
        impl: Implementation for all blocks, see `shifted_window_attention`.

    Returns:
        A handle: use it in `with`, or keep the replacement and call `undo()` when needed.

    Raises:
        ImportError: MONAI is missing.
        ValueError: the model holds no Swin block, or a block uses attention dropout, which is not supported.
    """
    block_class, stage_class = _fused_classes()
    swin = require("monai.networks.nets.swin_unetr", extra="medical", purpose="Replacing MONAI's window attention")
    swaps: list[tuple[nn.Module, type[nn.Module]]] = []
    for name, module in model.named_modules():
        if type(module) is swin.SwinTransformerBlock:
            if module.attn.attn_drop.p > 0:
                raise ValueError(
                    f"{name}: attention dropout {module.attn.attn_drop.p} is not supported by the fused window "
                    "attention; build the model with attn_drop_rate=0"
                )
            swaps.append((module, block_class))
        elif type(module) is swin.BasicLayer and not module.use_hyena:
            swaps.append((module, stage_class))
    if not any(cls is block_class for _, cls in swaps):
        raise ValueError(f"{type(model).__name__} holds no MONAI SwinTransformerBlock (or all are replaced already)")
    done = []
    for module, cls in swaps:
        done.append((module, type(module)))
        module.__class__ = cls
        if cls is block_class:
            module.fused_options = {"legacy_index": legacy_index, "impl": impl}  # type: ignore[assignment]
    return ReplacedWindowAttention(done)


@cache
def _fused_classes() -> tuple[type[nn.Module], type[nn.Module]]:
    """Subclasses of MONAI's block and stage, made on first use because MONAI is optional."""
    swin = require("monai.networks.nets.swin_unetr", extra="medical", purpose="Replacing MONAI's window attention")

    class FusedSwinTransformerBlock(swin.SwinTransformerBlock):  # type: ignore[name-defined, misc]
        def forward_part1(self, x: Tensor, mask_matrix: Tensor | None) -> Tensor:
            return _attention_branch(self, x)

    class FusedBasicLayer(swin.BasicLayer):  # type: ignore[name-defined, misc]
        def forward(self, x: Tensor) -> Tensor:
            x = x.movedim(1, -1)  # (B, [D,] H, W, C)
            for block in self.blocks:
                x = block(x, None)  # the [windows, n, n] mask is not built
            if self.downsample is not None:
                x = self.downsample(x)
            return x.movedim(-1, 1)

    return FusedSwinTransformerBlock, FusedBasicLayer


def _attention_branch(block: Any, x: Tensor) -> Tensor:
    """Norm, projection, window attention and output projection of one block; (B, [D,] H, W, C) in and out.

    MONAI pads the normed volume with zeros before the projection, so its empty places hold the projection's bias.
    """
    flat = x.ndim == 4
    attention = block.attn
    qkv = attention.qkv(block.norm1(x))
    if flat:
        qkv = rearrange(qkv, "b h w c -> b 1 h w c")
    pad = qkv.new_zeros(qkv.shape[-1]) if attention.qkv.bias is None else attention.qkv.bias
    one = (1,) if flat else ()
    out = shifted_window_attention(
        qkv,
        num_heads=attention.num_heads,
        window=(*one, *block.window_size),  # type: ignore[arg-type]
        shift=((0,) if flat else ()) + tuple(block.shift_size),  # type: ignore[arg-type]
        table=attention.relative_position_bias_table,
        pad=pad,
        scale=attention.scale,
        **block.fused_options,
    )
    out = rearrange(out, "b 1 h w c -> b h w c") if flat else out
    return attention.proj_drop(attention.proj(out))
