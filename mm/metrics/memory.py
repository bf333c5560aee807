"""Peak memory of a piece of code: the allocator's own figures on a GPU, a count of live tensor bytes elsewhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """Bytes that a call allocated, beyond what was there before."""

    peak_bytes: int
    """Largest sum of bytes alive at one time."""
    kept_bytes: int
    """Bytes still alive after the call, its result included."""


def measure_memory(fn: Callable[[], Any], *, device: str | torch.device = "cpu") -> MemoryUse:
    """Peak of the bytes that `fn` has alive at once.

    On a GPU these are the caching allocator's figures (`torch.cuda.max_memory_allocated`), which round blocks up to 512
    bytes. Elsewhere the storages of all tensors that operators return are counted, exactly and on the meta device too;
    scratch memory inside an operator is not seen.

    Args:
        fn: Called once.
        device: Where it allocates.

    Example:
        >>> use = measure_memory(lambda: torch.zeros(1000) + 1)
        >>> use.peak_bytes, use.kept_bytes
        (8000, 4000)
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _measure_cuda(fn, device)
    with _LiveBytes() as live:
        result = fn()
        kept = live.now
    del result
    return MemoryUse(peak_bytes=live.peak, kept_bytes=kept)


def _measure_cuda(fn: Callable[[], Any], device: torch.device) -> MemoryUse:
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    result = fn()
    torch.cuda.synchronize(device)
    kept = torch.cuda.memory_allocated(device) - before
    del result
    return MemoryUse(peak_bytes=torch.cuda.max_memory_allocated(device) - before, kept_bytes=kept)


class _LiveBytes(TorchDispatchMode):
    """Counts the storages that operators create, from their birth until nothing refers to them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # Storages that came from outside are known before the operator runs, so that views of them do not count.
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._note(leaf, new=False)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf, new=True)
        return result

    def _note(self, tensor: Tensor, *, new: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes() if new else 0

        def gone(_reference: weakref.ref) -> None:
            self.now -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)
