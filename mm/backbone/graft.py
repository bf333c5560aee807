"""Change what one module computes, in place and reversibly, by swapping the class of that instance.

`graft(norm, ViLN)` turns a `LlamaRMSNorm` object into an object of a new class that inherits from `ViLN` first and
from `LlamaRMSNorm` second. Nothing moves: the module keeps its place, its parameters, its state-dict keys and its
`isinstance`, so saving, peft, sharding and `torch.compile` do not notice; `super().forward(x)` inside the mixin is
the old computation. Whatever is attached to the module afterwards (children, parameters, plain attributes) belongs to
the graft, and `ungraft` removes exactly that. A forward hook would also work, but one that is added after
`torch.compile` is ignored in silence; a wrapper module would rename the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import TypeVar

from torch import nn

_RECORDS = "_graft_records"
_SLOTS = ("_modules", "_parameters", "_buffers")

Module = TypeVar("Module", bound=nn.Module)


def graft(module: Module, mixin: type) -> Module:
    """Let `mixin` override methods of one module instance.

    Args:
        module: Any module; its own class stays untouched. May carry grafts already (they nest).
        mixin: A class whose methods come first; `super()` reaches the module's own ones. Its `__init__` is not called.

    Returns:
        The same object. Attach the children and attributes that the mixin needs after this call.

    Raises:
        ValueError: the module already carries this mixin, or its `forward` was replaced on the instance (kernel
            patches, offloading hooks), so that a class swap would have no effect.

    Example:
        >>> import torch
        >>> class Doubled:
        ...     def forward(self, x):
        ...         return 2 * super().forward(x)
        >>> relu = nn.ReLU()
        >>> graft(relu, Doubled)(torch.ones(2)), isinstance(relu, nn.ReLU)
        (tensor([2., 2.]), True)
        >>> ungraft(relu)(torch.ones(2))
        tensor([1., 1.])
    """
    name = type(module).__name__
    if isinstance(module, mixin):
        raise ValueError(f"{name} already carries {mixin.__name__}; ungraft it first")
    if "forward" in vars(module):
        raise ValueError(
            f"{name}: its forward was replaced on this instance (a kernel patch or an offloading hook), so a graft "
            "would have no effect; load the model without it"
        )
    record = (type(module), {slot: frozenset(vars(module)[slot]) for slot in _SLOTS}, frozenset(vars(module)))
    module.__dict__.setdefault(_RECORDS, []).append(record)
    module.__class__ = _joined(mixin, type(module))  # type: ignore[arg-type]
    return module


def ungraft(module: Module) -> Module:
    """Undo the last `graft`: the class from before, without the children and attributes that came since.

    Raises:
        ValueError: the module carries no graft.
    """
    records = vars(module).get(_RECORDS)
    if not records:
        raise ValueError(f"{type(module).__name__} carries no graft, so there is nothing to undo")
    base, registered, plain = records.pop()
    for slot in _SLOTS:
        for name in set(vars(module)[slot]) - registered[slot]:
            delattr(module, name)
    for name in set(vars(module)) - plain - {_RECORDS}:
        del module.__dict__[name]
    if not records:
        del module.__dict__[_RECORDS]
    module.__class__ = base
    return module


def grafted(root: nn.Module) -> Iterator[nn.Module]:
    """Every module under `root` (itself included) that carries a graft."""
    return (module for module in root.modules() if vars(module).get(_RECORDS))


def grafted_children(root: nn.Module) -> Iterator[nn.Module]:
    """Modules that grafts attached anywhere under `root`; they are not part of the model that was grafted upon."""
    for module in grafted(root):
        before = vars(module)[_RECORDS][0][1]["_modules"]
        yield from (child for name, child in module.named_children() if name not in before)


def grafted_parameters(root: nn.Module) -> Iterator[nn.Parameter]:
    """Parameters that grafts attached anywhere under `root`, directly or inside attached children."""
    for module in grafted(root):
        before = vars(module)[_RECORDS][0][1]["_parameters"]
        yield from (value for name, value in module.named_parameters(recurse=False) if name not in before)
    for child in grafted_children(root):
        yield from child.parameters()


@cache
def _joined(mixin: type, base: type) -> type:
    """One class per pair, so that equal grafts compare equal and compiled code is shared."""
    return type(f"{mixin.__name__}{base.__name__}", (mixin, base), {"__module__": mixin.__module__})
