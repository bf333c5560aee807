"""Which visual context is in force while a forward pass runs.

Hugging Face blocks call a norm with one argument, so the context reaches the norms beside the call: all modulated norms
of a model share one `Stage`, a forward pass puts a `Frame` on it and takes it away again. The frame in force belongs to
the running thread, so that concurrent requests on one model do not see each other's images, and nested passes restore
the outer one.

Gradient checkpointing runs blocks a second time during backward, when the forward pass is long over and perhaps in
another thread. `remember_frames` wraps the checkpointing function so that the second run sees the frame of the first.

Dims: B rows of the context, K text rows per context row (beams), N text tokens, S memory slots.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mm.encoders.lavi.context import VisualContext

if TYPE_CHECKING:
    from mm.encoders.lavi.diagnostics import Recorder


@dataclass(frozen=True, eq=False)
class View:
    """Which slots the text tokens may read; token axes are 1 when all tokens of a row agree."""

    mask: Tensor | None = None
    """(B, K*N or 1, S) bool, every row of it with at least one True, so that no softmax is empty; None: everything."""
    gate: Tensor | None = None
    """(B, K*N or 1) bool: tokens that are modulated at all; the others keep the plain norm bit for bit. None: all."""


@dataclass(eq=False)
class Frame:
    """A context in force, what the tokens of the current pass see of it, and who is watching."""

    context: VisualContext
    view: View
    recorder: Recorder | None = None


class Stage:
    """Holds the frame in force, one per thread, and the factor on all deltas. Shared by all modulated norms."""

    def __init__(self, delta_scale: float = 1.0) -> None:
        self.delta_scale = delta_scale
        self._local = threading.local()

    @property
    def frame(self) -> Frame | None:
        """The frame that norms in this thread obey now."""
        return getattr(self._local, "frame", None)

    @contextmanager
    def showing(self, frame: Frame | None) -> Iterator[None]:
        """Put `frame` (None: no vision) in force inside the block; afterwards, also after errors, the one before."""
        before = self.frame
        self._local.frame = frame
        try:
            yield
        finally:
            self._local.frame = before

    def __reduce__(self) -> tuple[type[Stage], tuple[float]]:
        """Copies and pickles of a model start without a frame: thread-local state cannot travel."""
        return Stage, (self.delta_scale,)


# --- what text may see ------------------------------------------------------------------------------------------


def whole_view(context: VisualContext) -> View:
    """The view of a pass in which every text token sees all pictures of its row."""
    mask = None if context.mask is None else context.mask.unsqueeze(1)  # (B, 1, S)
    gate = None if context.present is None else context.present.unsqueeze(1)  # (B, 1)
    return View(_never_empty(mask), gate)


def token_view(context: VisualContext, order: Tensor, *, modulate_first: bool) -> View:
    """The view of a pass in which it matters where a text token stands.

    Args:
        context: Visual context of B rows; `image_starts` may limit what a token sees.
        order: Number of real text tokens in front of each token, (B*K, N) integer; -1 on left padding.
        modulate_first: False leaves each row's first token alone.

    Returns:
        A view with token axes of K*N: the K text rows of one context row stand behind each other.
    """
    order = order.reshape(context.batch_size, -1).to(context.device)  # (B, K*N)
    gate = order >= (0 if modulate_first else 1)
    if context.present is not None:
        gate = gate & context.present.unsqueeze(1)
    mask = None if context.mask is None else context.mask.unsqueeze(1)
    if context.image_starts is not None:
        assert context.image_ids is not None  # checked by VisualContext.placed
        starts = context.image_starts.gather(1, context.image_ids)  # (B, S)
        seen = order.unsqueeze(2) >= starts.unsqueeze(1)  # (B, K*N, S)
        mask = seen if mask is None else mask & seen
        gate = gate & mask.any(dim=2)
    return View(_never_empty(mask), gate)


def _never_empty(mask: Tensor | None) -> Tensor | None:
    """Let rows that may read nothing read everything: their result is gated away, and no softmax gives NaN."""
    return None if mask is None else mask | ~mask.any(dim=-1, keepdim=True)


def token_order(tokens: Tensor, attention_mask: Any, position_ids: Tensor | None, past_key_values: Any) -> Tensor:
    """Number of real text tokens in front of each token of this pass.

    Args:
        tokens: Ids (R, N) or embeddings (R, N, D) of this pass.
        attention_mask: Preferred source: (R, cached + N), True or 1 = real.
        position_ids: Used when the mask is absent or no longer two-dimensional, (R, N).
        past_key_values: Last resort: the cache, whose length counts.

    Returns:
        (R, N) integer; -1 on left padding.
    """
    rows, length = tokens.shape[:2]
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        return (attention_mask.to(torch.long).cumsum(1) - 1)[:, -length:]
    if position_ids is not None and position_ids.ndim == 2:
        return position_ids.expand(rows, -1)
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    return (torch.arange(length, device=tokens.device) + past).expand(rows, -1)


# --- gradient checkpointing -------------------------------------------------------------------------------------


def remember_frames(modules: Iterable[nn.Module], stage: Stage) -> None:
    """Make gradient-checkpointed blocks see, when they are run again, the frame of their first run.

    Cheap and idempotent, so it is called before every training pass: checkpointing may be switched on at any time.

    Raises:
        ValueError: reentrant checkpointing, which loses the gradients of everything that is not a block input.
    """
    for module in modules:
        run = getattr(module, "_gradient_checkpointing_func", None)
        if run is None or isinstance(run, _Remembering) or not getattr(module, "gradient_checkpointing", False):
            continue
        if isinstance(run, partial) and run.keywords.get("use_reentrant"):
            raise ValueError(
                "reentrant gradient checkpointing drops the gradients of the visual path; switch it on with "
                "gradient_checkpointing_enable({'use_reentrant': False})"
            )
        module._gradient_checkpointing_func = _Remembering(run, stage)  # type: ignore[assignment]


class _Remembering:
    """A checkpointing function whose second run sees the frame of the first."""

    def __init__(self, run: Callable[..., Any], stage: Stage) -> None:
        self.run, self.stage = run, stage

    def __call__(self, block: Callable[..., Any], *args: Any) -> Any:
        if torch.compiler.is_compiling():  # recomputation is part of the traced graph there
            return self.run(block, *args)
        frame = self.stage.frame
        if frame is not None:
            frame = Frame(frame.context, frame.view, frame.recorder)  # the view of this pass, whatever comes later

        def with_frame(*inputs: Any) -> Any:
            with self.stage.showing(frame):
                return block(*inputs)

        return self.run(with_frame, *args)


def forget_frames(modules: Iterable[nn.Module]) -> None:
    """Undo `remember_frames`."""
    for module in modules:
        run = getattr(module, "_gradient_checkpointing_func", None)
        if isinstance(run, _Remembering):
            module._gradient_checkpointing_func = run.run  # type: ignore[assignment]
