"""Reuse of the text key/value cache between requests, aware of the pictures.

In LaVi the keys and values of the *text* depend on the picture, those of the system prompt too, because modulated norms
stand in front of them. A prefix cache that looks at token ids only would answer about the wrong picture. Here every
stored prefix carries the fingerprint of its context, the delta scale and the state of the weights, and is refused when
one of them differs.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mm.encoders.lavi.context import VisualContext

if TYPE_CHECKING:
    from mm.encoders.lavi.lavi import Lavi


@dataclass(frozen=True, eq=False, kw_only=True)
class Prefix:
    """Keys and values of a text under certain pictures."""

    key: str
    """What besides the text they depend on (see `conditions`)."""
    input_ids: Tensor
    """The tokens that are cached, (B, L)."""
    cache: Any
    """The Hugging Face cache, L tokens long; never changed, `resume` hands out copies."""

    def resume(self, lavi: Lavi, input_ids: Tensor, visual: VisualContext | None) -> Any:
        """A copy of the cache, cut to the part of `input_ids` it covers.

        Raises:
            ValueError: made with other pictures, another delta scale or other weights; or with another text.
        """
        if self.key != conditions(lavi, visual):
            raise ValueError(
                "this prefix was cached with other pictures, another delta_scale or other weights; its keys and values "
                "depend on them, so run the prompt again"
            )
        covered = self.covers(input_ids)
        if covered == 0:
            raise ValueError("this prefix was cached for another text, or cannot be cut to the common part")
        cache = copy.deepcopy(self.cache)
        if covered < self.input_ids.shape[1]:
            cache.crop(covered - self.input_ids.shape[1])
        return cache

    def covers(self, input_ids: Tensor) -> int:
        """How many leading tokens of `input_ids` (B, N) can be taken from the cache; the last one is always run."""
        if len(input_ids) != len(self.input_ids):
            return 0
        shared = min(input_ids.shape[1], self.input_ids.shape[1])
        equal = (input_ids[:, :shared].cpu() == self.input_ids[:, :shared]).all(0)
        common = min(int(equal.long().cumprod(0).sum()), input_ids.shape[1] - 1)
        croppable = not any(getattr(self.cache, "is_sliding", None) or [False])
        return common if croppable or common == self.input_ids.shape[1] else 0


class PrefixCache:
    """Keeps the caches of the last prompts and answers, and continues the longest one that fits.

    Text-only adapters that are switched by peft are not part of the conditions: `clear()` after switching them.

    Args:
        lavi: The model.
        capacity: Prefixes kept; the least recently used goes first.
    """

    def __init__(self, lavi: Lavi, capacity: int = 8) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.lavi, self.capacity = lavi, capacity
        self.reused_tokens = 0
        """Tokens that did not have to be run, over all calls."""
        self._prefixes: OrderedDict[int, Prefix] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return len(self._prefixes)

    def clear(self) -> None:
        """Forget everything."""
        self._prefixes.clear()

    def lookup(self, input_ids: Tensor, visual: VisualContext | None) -> Prefix | None:
        """The stored prefix that covers most of `input_ids` under these very pictures, or None."""
        key = conditions(self.lavi, visual)
        candidates = [(p.covers(input_ids), name) for name, p in self._prefixes.items() if p.key == key]
        best, name = max(candidates, default=(0, -1))
        if best == 0:
            return None
        self._prefixes.move_to_end(name)
        return self._prefixes[name]

    def store(self, input_ids: Tensor, cache: Any, visual: VisualContext | None) -> Prefix:
        """Remember the cache of `input_ids` (B, L); a copy is kept."""
        length = int(cache.get_seq_length())
        prefix = Prefix(
            key=conditions(self.lavi, visual), input_ids=input_ids[:, :length].cpu().clone(), cache=copy.deepcopy(cache)
        )
        self._count += 1
        self._prefixes[self._count] = prefix
        while len(self._prefixes) > self.capacity:
            self._prefixes.popitem(last=False)
        return prefix

    def generate(self, input_ids: Tensor, visual: VisualContext | None = None, **kwargs: Any) -> Tensor:
        """`Lavi.generate`, continuing a stored prefix where one fits, and storing the result for the next turn.

        Returns:
            Prompt and answer, (B, N + new).

        Raises:
            ValueError: padded rows, beams or several returned sequences, whose caches cannot be kept.
        """
        mask = kwargs.get("attention_mask")
        if mask is not None and not bool(mask.bool().all()):
            raise ValueError(
                "PrefixCache needs rows without padding; group prompts of one length, or call lavi.generate"
            )
        for name in ("num_beams", "num_return_sequences"):
            if (kwargs.get(name) or 1) != 1:
                raise ValueError(f"PrefixCache keeps one sequence per row, so {name} must be 1, got {kwargs[name]}")
        prefix = self.lookup(input_ids, visual)
        if prefix is not None:
            self.reused_tokens += prefix.covers(input_ids) * len(input_ids)
        kwargs |= {"return_dict_in_generate": True, "use_cache": True}
        output = self.lavi.generate(input_ids, visual, prefix=prefix, **kwargs)
        self.store(output.sequences, output.past_key_values, visual)
        return output.sequences  # type: ignore[no-any-return]


def conditions(lavi: Lavi, visual: VisualContext | None) -> str:
    """Everything but the text that cached keys and values depend on: pictures, delta scale, weights."""
    pictures = "none" if visual is None or lavi.delta_scale == 0.0 else visual.fingerprint
    versions = sum(parameter._version for parameter in lavi.parameters() if not parameter.is_inference())
    return f"{pictures} scale={lavi.delta_scale} first={lavi.config.modulate_first_token} weights={versions}"


def prefill(lavi: Lavi, input_ids: Tensor, visual: VisualContext | None = None) -> Any:
    """Run a prompt (B, N) without padding and return its cache, ready for `PrefixCache.store` or `generate`."""
    with torch.no_grad():
        return lavi(input_ids, visual=visual, use_cache=True).past_key_values
