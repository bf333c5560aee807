"""FLOPs of any PyTorch code: on the meta device, without memory and arithmetic, or of what runs anyway.

One multiply-accumulate is 2 FLOPs; matrix products and convolutions count, element-wise work does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode, flop_registry


def count_flops(fn: Callable[[], Any], *, causal_attention: bool = False) -> int:
    """FLOPs of one call of `fn`.

    Every tensor that `fn` touches must be on the meta device (build the model under `torch.device("meta")`, or use
    `on_meta`): on the CPU PyTorch's counter sees fused attention as 0 FLOPs, so a tensor elsewhere is an error.

    Args:
        fn: Called once; may contain a backward pass.
        causal_attention: Halve the two matrix products of every scaled-dot-product attention with as many queries as
            keys, as a causal kernel does. The default counts full attention. Runs `fn` without gradients.

    Returns:
        FLOPs, an integer.

    Raises:
        ValueError: a result or an attention is not on the meta device; or `causal_attention` with no attention that
            could be halved, so that the number would be that of full attention.

    Example:
        >>> with torch.device("meta"):
        ...     layer, x = nn.Linear(8, 4), torch.empty(3, 8)
        >>> count_flops(lambda: layer(x))
        192
    """
    attention = _AttentionFlops()
    counter = FlopCounterMode(display=False)
    with attention, counter, torch.no_grad() if causal_attention else nullcontext():
        result = fn()
    _refuse_real(result)
    total = int(counter.get_total_flops())
    if not causal_attention:
        return total
    if not attention.square:
        raise ValueError(
            "causal_attention=True found no scaled_dot_product_attention with as many queries as keys; "
            "use attn_implementation='sdpa', or subtract half of the attention by its closed form"
        )
    return total - attention.square // 2


class _AttentionFlops(TorchFunctionMode):
    """Adds up the FLOPs of square attentions while they run."""

    def __init__(self) -> None:
        super().__init__()
        self.square = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            query, key, value = named["query"], named["key"], named["value"]
            _refuse_real(query)
            if query.shape[-2] == key.shape[-2]:
                rows = query.shape[:-1].numel()  # all heads, all queries
                self.square += 2 * rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return func(*args, **kwargs)


def _refuse_real(result: Any) -> None:
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor) and leaf.device.type != "meta":
            raise ValueError(
                f"FLOPs are counted on the meta device, found a tensor on {leaf.device}; build model and inputs "
                "under torch.device('meta'), or wrap them with mm.metrics.flops.on_meta"
            )


@contextmanager
def on_meta(module: nn.Module, inputs: Any) -> Iterator[tuple[Callable[..., Any], Any]]:
    """A twin of `module` on the meta device that shares its code, and `inputs` moved there; the module stays as it is.

    Args:
        module: On any device; its parameters and buffers are replaced during a call only.
        inputs: Tensors in any nesting of containers.

    Yields:
        A function that calls `module.forward` on meta parameters, and the inputs for it. The random state of the CPU
        is restored at the end.

    Example:
        >>> layer = nn.Linear(8, 4)
        >>> with on_meta(layer, torch.ones(3, 8)) as (twin, x):
        ...     count_flops(lambda: twin(x))
        192
    """

    def move(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor):
            return tensor
        return torch.empty_like(tensor, device="meta").requires_grad_(tensor.requires_grad)

    state = {name: move(value) for name, value in (*module.named_parameters(), *module.named_buffers())}
    with torch.random.fork_rng(devices=[]):
        yield lambda *args, **options: functional_call(module, state, args, options), tree_map(move, inputs)


class ExecutedFlops(TorchDispatchMode):
    """Adds up the FLOPs of the operators that run inside the block, on any device, backward passes included.

    Counts what is executed: a forward pass that checkpointing repeats counts twice, and attention counts in full, as
    PyTorch's formulas have it. Beside those it knows the CPU's fused attention, which PyTorch's counter takes for free.

    Example:
        >>> layer = nn.Linear(8, 4)
        >>> with ExecutedFlops() as counter:
        ...     _ = layer(torch.ones(3, 8))
        >>> counter.total
        192
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        formula: Any = CPU_ATTENTION.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # operators that are made of others come apart here, as in inference mode
                parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.total += int(formula(*args, **kwargs, out_val=result))
        return result


def _cpu_attention(query: Tensor, key: Tensor, value: Tensor, *_args: Any, **_kwargs: Any) -> int:
    """Two matrix products: scores and mixture."""
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _cpu_attention_backward(_gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Five matrix products: scores once more, and the gradients of weights, queries, keys and values."""
    return 2 * query.shape[:-1].numel() * key.shape[-2] * (3 * query.shape[-1] + 2 * value.shape[-1])


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}
