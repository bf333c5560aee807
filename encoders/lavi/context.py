"""The visual context: everything that text tokens need to know about the pictures, computed once.

A context holds, per modulated block, the tensors that its conditioner reads (for the attention conditioner the visual
keys and values), plus which slots are real and which image, tile and frame they come from. It follows the batch:
whatever is done to the rows of the text (expansion for beams, reordering, concatenation) is done to the context by one
method here. It can be kept over turns and questions and stored on disk: a compiled image of a few megabytes.

Dims: B batch, S memory slots (attention: visual tokens; conv: cells; mlp: hidden rows; film: 1), I images of a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from mm.checkpoint import write_aside

_PER_SLOT = ("mask", "tile_ids", "frame_ids", "image_ids")
_PER_ROW = ("present", "image_starts")


@dataclass(frozen=True, eq=False, kw_only=True)
class VisualContext:
    """What `Lavi.encode_vision` returns and every call with `visual=` takes. Immutable; methods return new contexts."""

    memory: dict[int, tuple[Tensor, ...]] = field(repr=False)
    """Modulated block -> the tensors its conditioner reads, each (B, S, ...)."""
    signature: str
    """Which adapter layout made it; a context of another layout is refused."""
    slot_wise: bool
    """True when slots can be masked and appended one by one (attention, conv), False when all pictures are merged."""
    mask: Tensor | None = None
    """True where a slot is real, (B, S) bool; None when all are."""
    present: Tensor | None = None
    """True for rows with any vision, (B,) bool; None when all have some. Other rows are text only: zero deltas."""
    tile_ids: Tensor | None = None
    """Tile of each slot, (B, S) integer."""
    frame_ids: Tensor | None = None
    """Video frame of each slot, (B, S) integer."""
    image_ids: Tensor | None = None
    """Image of each slot, (B, S) integer."""
    image_starts: Tensor | None = None
    """Number of text tokens in front of each image, (B, I) integer: a text token sees the images placed before it. None
    lets every text token see every image."""

    # --- shape ---------------------------------------------------------------------------------------------------

    @property
    def batch_size(self) -> int:
        """Rows of the context (B)."""
        return self._first.shape[0]

    @property
    def num_slots(self) -> int:
        """Slots per row, padding included (S)."""
        return self._first.shape[1]

    @property
    def cache_bytes(self) -> int:
        """Bytes that the conditioners' memory takes, the counterpart of visual tokens in a key/value cache."""
        return sum(t.numel() * t.element_size() for entry in self.memory.values() for t in entry)

    @property
    def device(self) -> torch.device:
        """Where the context lives."""
        return self._first.device

    @property
    def _first(self) -> Tensor:
        return next(iter(self.memory.values()))[0]

    # --- following the batch -------------------------------------------------------------------------------------

    def expand(self, times: int) -> Self:
        """Every row `times` times in a row, as generation expands a batch for beams."""
        return self._map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    def index(self, rows: Tensor | Sequence[int]) -> Self:
        """The given rows in the given order; repeats are allowed."""
        chosen = torch.as_tensor(rows, device=self.device)
        return self._map(lambda tensor: tensor.index_select(0, chosen.to(tensor.device)))

    def reorder(self, beam_idx: Tensor) -> Self:
        """Rows in the order a beam search asks for; the name that generation code looks for."""
        return self.index(beam_idx)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move to a device and cast the memory (masks and ids keep their types)."""
        return self._map(lambda t: t.to(device=device, dtype=dtype if t.is_floating_point() else None))

    def detach(self) -> Self:
        """The same values without gradients."""
        return self._map(Tensor.detach)

    def without(self, drop: Tensor) -> Self:
        """Rows where `drop` (B,) bool is True become text only."""
        keep = ~drop if self.present is None else self.present & ~drop
        return replace(self, present=keep)

    def placed(self, image_starts: Tensor) -> Self:
        """Let each text token see only the images placed before it.

        Args:
            image_starts: Number of real text tokens in front of image i of each row, (B, I) integer (see
                `strip_placeholders`); a token with as many tokens before it, or more, sees the image.

        Raises:
            ValueError: the conditioner merges all pictures, no `image_ids` were given, or another batch size.
        """
        if not self.slot_wise:
            raise ValueError("this conditioner merges all pictures of a row, so images cannot be shown one by one")
        if self.image_ids is None:
            raise ValueError("the context does not know which image a slot belongs to: pass image_ids to encode_vision")
        if image_starts.shape[0] != self.batch_size:
            raise ValueError(f"image_starts has {image_starts.shape[0]} rows, the context has {self.batch_size}")
        return replace(self, image_starts=image_starts.to(self.image_ids.device))

    # --- joining -------------------------------------------------------------------------------------------------

    @classmethod
    def cat(cls, contexts: Sequence[VisualContext]) -> VisualContext:
        """Rows of several contexts under each other; shorter ones are padded with masked slots.

        Raises:
            ValueError: nothing to join, or contexts of different adapters.
        """
        if not contexts:
            raise ValueError("VisualContext.cat needs at least one context")
        _check_same_kind(contexts)
        slots = max(context.num_slots for context in contexts)
        ragged = any(context.num_slots != slots for context in contexts)
        padded = [context._padded(slots) if ragged else context for context in contexts]
        return _join(padded, dim=0)

    def append(self, later: VisualContext) -> VisualContext:
        """The slots of `later` behind those of this context, row by row: further frames of a stream.

        New text sees all frames. Text that was cached before keeps what it saw; run it again to refresh it.

        Raises:
            ValueError: a conditioner that merges all pictures, other adapters or other batch sizes.
        """
        _check_same_kind([self, later])
        if not self.slot_wise:
            raise ValueError("this conditioner merges all frames of a clip; encode the longer clip again instead")
        if self.batch_size != later.batch_size:
            raise ValueError(f"cannot append {later.batch_size} rows of frames to {self.batch_size} rows")
        if self.image_starts is not None or later.image_starts is not None:
            raise ValueError(
                "append first and call placed(...) on the result, so that it knows where every image stands"
            )
        return _join([self, later], dim=1)

    def _padded(self, slots: int) -> VisualContext:
        gap = slots - self.num_slots

        def pad(tensor: Tensor) -> Tensor:
            return F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, gap))

        mask = self.mask if self.mask is not None else self._ones(self.num_slots)
        memory = {layer: tuple(map(pad, entry)) for layer, entry in self.memory.items()}
        given = {name: getattr(self, name) for name in _PER_SLOT[1:]}
        ids: dict[str, Any] = {name: None if value is None else pad(value) for name, value in given.items()}
        return replace(self, memory=memory, mask=pad(mask), **ids)

    def _ones(self, *shape: int) -> Tensor:
        return torch.ones(self.batch_size, *shape, dtype=torch.bool, device=self.device)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Self:
        memory = {layer: tuple(map(change, entry)) for layer, entry in self.memory.items()}
        rest = {name: getattr(self, name) for name in (*_PER_SLOT, *_PER_ROW)}
        changed: dict[str, Any] = {name: None if value is None else change(value) for name, value in rest.items()}
        return replace(self, memory=memory, **changed)

    # --- identity and files --------------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything text depends on; equal contexts have equal ones. Copies the context to the host once."""
        digest = hashlib.sha256(self.signature.encode())
        for name, tensor in sorted(self.tensors().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under flat names, as they are stored."""
        named = {f"memory.{layer}.{i}": t for layer, entry in self.memory.items() for i, t in enumerate(entry)}
        rest = {name: getattr(self, name) for name in (*_PER_SLOT, *_PER_ROW)}
        return named | {name: tensor for name, tensor in rest.items() if tensor is not None}

    def save(self, path: str | Path) -> Path:
        """Write the context to one safetensors file; loading gives back the same bits."""
        state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors().items()}
        header = {"signature": self.signature, "slot_wise": json.dumps(self.slot_wise), "kind": "lavi-visual-context"}
        with write_aside(path) as temporary:
            save_file(state, temporary, metadata=header)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> VisualContext:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged or holds something else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such visual context")
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                header: dict[str, str] = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error}); encode the image again") from error
        if header.get("kind") != "lavi-visual-context":
            raise ValueError(f"{path}: a safetensors file, but not a visual context written by VisualContext.save")
        memory: dict[int, dict[int, Tensor]] = {}
        rest: dict[str, Any] = {}
        for name, tensor in tensors.items():
            if name.startswith("memory."):
                _, layer, part = name.split(".")
                memory.setdefault(int(layer), {})[int(part)] = tensor
            else:
                rest[name] = tensor
        ordered = {layer: tuple(parts[i] for i in sorted(parts)) for layer, parts in sorted(memory.items())}
        return cls(memory=ordered, signature=header["signature"], slot_wise=json.loads(header["slot_wise"]), **rest)


def _check_same_kind(contexts: Sequence[VisualContext]) -> None:
    signatures = sorted({context.signature for context in contexts})
    if len(signatures) > 1:
        raise ValueError(f"contexts of different adapters cannot be joined: {' / '.join(signatures)}")


def _join(contexts: Sequence[VisualContext], dim: int) -> VisualContext:
    """Concatenate along rows (dim 0) or slots (dim 1); masks that only some contexts have are filled in."""
    first = contexts[0]
    memory = {
        layer: tuple(torch.cat(parts, dim=dim) for parts in zip(*(c.memory[layer] for c in contexts), strict=True))
        for layer in first.memory
    }
    joined: dict[str, Tensor | None] = {}
    for name in _PER_SLOT:
        parts = [getattr(context, name) for context in contexts]
        joined[name] = _cat_optional(parts, [c._ones(c.num_slots) for c in contexts], dim, required=name != "mask")
    present = [context.present for context in contexts]
    if dim == 0:
        joined["present"] = _cat_optional(present, [c._ones() for c in contexts], 0, required=False)
        joined["image_starts"] = _cat_starts([context.image_starts for context in contexts])
    elif all(part is not None for part in present):
        joined["present"] = torch.stack([part for part in present if part is not None]).any(dim=0)
    return VisualContext(memory=memory, signature=first.signature, slot_wise=first.slot_wise, **joined)


def _cat_optional(parts: list[Tensor | None], ones: list[Tensor], dim: int, *, required: bool) -> Tensor | None:
    """Concatenate; None everywhere stays None, None beside tensors means all True (masks) or is refused (ids)."""
    if all(part is None for part in parts):
        return None
    if required and any(part is None for part in parts):
        raise ValueError("only some of the contexts carry tile, frame or image ids; encode them alike")
    return torch.cat([one if part is None else part for part, one in zip(parts, ones, strict=True)], dim=dim)


def _cat_starts(starts: list[Tensor | None]) -> Tensor | None:
    """Image positions of several contexts under each other; rows with fewer images are padded."""
    if all(entry is None for entry in starts):
        return None
    if any(entry is None for entry in starts):
        raise ValueError("only some of the contexts carry image positions; call placed(...) on all of them or on none")
    images = max(entry.shape[1] for entry in starts if entry is not None)
    return torch.cat([F.pad(entry, (0, images - entry.shape[1])) for entry in starts if entry is not None])
