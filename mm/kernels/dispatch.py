"""Which implementation of a kernel runs: one pure decision, logged once, explained on request.

Every kernel of this package has several implementations that compute the same function. A `Dispatcher` lists them in
order of preference; `decide` looks at nothing but a `Situation`, so the same call on the same machine always takes the
same path. The environment variable `MM_KERNELS` replaces `impl="auto"`: `MM_KERNELS=reference` for all kernels that
have that implementation, `MM_KERNELS=nearest_code=triton,attention=sdpa` for single ones.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

IMPLEMENTATIONS = {
    "reference": "plain torch, written for reading",
    "blocked": "plain torch in blocks that fit the cache",
    "sdpa": "torch's fused scaled-dot-product attention",
    "flex": "torch's FlexAttention",
    "triton": "a Triton kernel of this package",
}


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Everything a decision may look at."""

    device: str = "cpu"
    """Device type: "cpu", "cuda", "meta", "mps", ..."""
    capability: tuple[int, int] | None = None
    """Compute capability of a CUDA device."""
    dtype: torch.dtype = torch.float32
    """Dtype of the main operand."""
    head_dim: int = 0
    """Channels per head, or the width where there are no heads."""
    length: int = 0
    """Tokens, rows or queries."""
    needs_grad: bool = False
    """Whether a backward pass will follow."""
    deterministic: bool = False
    """Whether `torch.use_deterministic_algorithms` is on."""
    triton: bool = False
    """Whether Triton kernels can be launched on this device."""


@dataclass(frozen=True)
class Candidate:
    """One implementation of a kernel.

    Args:
        impl: Name, one of `IMPLEMENTATIONS`.
        why: Why it is taken when nothing stands against it.
        cannot: Gives the reason why it cannot run, or None.
        unsuited: Gives the reason why `auto` passes over it although it could run, or None.
    """

    impl: str
    why: str
    cannot: Callable[[Situation], str | None] = lambda _: None
    unsuited: Callable[[Situation], str | None] = lambda _: None


@dataclass(frozen=True)
class Choice:
    """What runs, and why."""

    impl: str
    reason: str


class Dispatcher:
    """The implementations of one kernel, best first; the last one must run everywhere.

    Args:
        kernel: Public name of the kernel, used in messages and in `MM_KERNELS`.
        candidates: Implementations in order of preference.

    Example:
        >>> fused, plain = Candidate("triton", "fused", needs_triton), Candidate("reference", "always runs")
        >>> pick = Dispatcher("twice", fused, plain)
        >>> pick.decide(Situation(device="cpu"), "auto").impl
        'reference'
    """

    def __init__(self, kernel: str, *candidates: Candidate) -> None:
        self.kernel = kernel
        self.candidates = {candidate.impl: candidate for candidate in candidates}

    def decide(self, situation: Situation, impl: str = "auto") -> Choice:
        """The implementation for a situation. Pure: reads no state but its arguments.

        Raises:
            ValueError: `impl` is unknown, not offered by this kernel, or cannot run here; the message names the reason
                and what would run instead. `impl="auto"` never raises.
        """
        if impl == "auto":
            return self._best(situation)
        if impl not in self.candidates:
            known = ", ".join(self.candidates)
            raise ValueError(f"{self.kernel} has no implementation {impl!r}; choose auto, {known}")
        obstacle = self.candidates[impl].cannot(situation)
        if obstacle:
            other = self._best(situation)
            raise ValueError(f"{self.kernel}: impl={impl!r} cannot run: {obstacle}; use impl={other.impl!r} or 'auto'")
        return Choice(impl, "asked for by name")

    def _best(self, situation: Situation) -> Choice:
        passed: list[str] = []
        for candidate in self.candidates.values():
            obstacle = candidate.cannot(situation) or candidate.unsuited(situation)
            if obstacle is None:
                return Choice(candidate.impl, "; ".join([candidate.why, *passed]))
            passed.append(f"not {candidate.impl}: {obstacle}")
        return Choice(candidate.impl, "; ".join(["last resort", *passed]))

    def choose(self, situation: Situation, impl: str = "auto") -> str:
        """Name of the implementation to run, after `MM_KERNELS`; each new decision is logged once.

        Raises:
            ValueError: see `decide`.
        """
        if impl == "auto":
            impl = self._from_environment(os.environ.get("MM_KERNELS", ""))
        choice = self.decide(situation, impl)
        if not torch.compiler.is_compiling():
            _remember(self.kernel, situation.device, choice)
        return choice.impl

    def _from_environment(self, setting: str) -> str:
        for entry in filter(None, (part.strip() for part in setting.split(","))):
            kernel, _, impl = entry.rpartition("=")
            if kernel == self.kernel or (not kernel and impl in self.candidates):
                return impl
            if not kernel and impl != "auto" and impl not in IMPLEMENTATIONS:
                raise ValueError(
                    f"MM_KERNELS={setting}: unknown implementation {impl!r}; choose {', '.join(IMPLEMENTATIONS)}"
                )
        return "auto"


_DECISIONS: dict[tuple[str, str, Choice], None] = {}


def _remember(kernel: str, device: str, choice: Choice) -> None:
    key = (kernel, device, choice)
    if key not in _DECISIONS:
        _DECISIONS[key] = None
        logger.info("%s on %s: %s (%s)", kernel, device, choice.impl, choice.reason)


def explain() -> str:
    """Every decision of this process so far, one line each: kernel, device, implementation, reason."""
    lines = [f"{kernel} on {device}: {choice.impl} ({choice.reason})" for kernel, device, choice in _DECISIONS]
    return "\n".join(lines) or "no kernel has run yet"


def situation(x: Tensor, *, length: int, head_dim: int | None = None, needs_grad: bool | None = None) -> Situation:
    """The `Situation` of a call whose main operand is `x`; `head_dim` defaults to its last size."""
    grad = torch.is_grad_enabled() and x.requires_grad if needs_grad is None else needs_grad
    cuda = x.device.type == "cuda"
    return Situation(
        device=x.device.type,
        capability=torch.cuda.get_device_capability(x.device) if cuda else None,
        dtype=x.dtype,
        head_dim=x.shape[-1] if head_dim is None else head_dim,
        length=length,
        needs_grad=grad,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        triton=has_triton() if cuda else triton_is_interpreted(),
    )


@cache
def has_triton() -> bool:
    """Whether the `triton` package is installed (asked once, without importing it)."""
    return find_spec("triton") is not None


def triton_is_interpreted() -> bool:
    """Whether Triton kernels run on CPU tensors, because TRITON_INTERPRET=1 was set before they were defined."""
    return os.environ.get("TRITON_INTERPRET") == "1" and has_triton()


def needs_triton(where: Situation) -> str | None:
    """The obstacle of a Triton kernel: it needs the package and an Ampere or newer CUDA device (or the interpreter)."""
    if where.device != "cuda" and not where.triton:
        return f"no CUDA device ({where.device} tensors)"
    if not where.triton:
        return "triton is not installed (pip install 'mm[gpu]')"
    if where.capability is not None and where.capability < (8, 0):
        return f"compute capability {where.capability[0]}.{where.capability[1]} is below 8.0"
    if where.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"dtype {where.dtype} is not one of float16, bfloat16, float32"
    return None
