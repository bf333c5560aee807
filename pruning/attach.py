"""Put a pruner around a vision-language model for the length of a `with` block.

Nothing is patched globally and no class changes. How calls are intercepted depends on the model
(`mm.pruning.calls_transformers`, `mm.pruning.calls_own`); inside the language model blocks get hooks if the method
works there. Leaving the block removes all of it, also after an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from mm.pruning.base import Pruned, Pruner
from mm.pruning.calls_own import OwnCalls
from mm.pruning.calls_transformers import TransformersCalls
from mm.pruning.hosts import Host, open_host
from mm.pruning.hosts.own import OwnHost
from mm.pruning.llm_hooks import LanguageHooks

_ACTIVE: WeakKeyDictionary[nn.Module, Pruner] = WeakKeyDictionary()
_VIDEO = ("pixel_values_videos",)


class Attached:
    """What a pruner did while it was attached."""

    def __init__(self, pruner: Pruner, host: Host) -> None:
        self.pruner = pruner
        self.host = host
        self.pruned: list[Pruned] = []
        """Results of the encoder stage of the last call."""
        self.visual_tokens: list[tuple[int, int]] = []
        """(unpruned, entering the language model) of each picture of the last call."""
        stage = pruner.language_stage(host.layout)
        self.language = None if stage is None else LanguageHooks(stage, host)

    def prepare(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a call with pictures -> the same call with fewer visual tokens.

        Raises:
            ValueError: videos, or a prompt that does not match its pictures.
        """
        if any(inputs.get(name) is not None for name in _VIDEO):
            raise ValueError("videos are not pruned yet; pass frames as pictures, or leave the `with` block")
        if inputs.get("pixel_values") is None:
            return inputs
        self.pruned, self.visual_tokens = [], []
        found = self.host.pruned_inputs(self.pruner, inputs) if self.pruner.stage == "encoder" else None
        if found is None:
            return inputs
        short, pictures, self.pruned = found
        self.visual_tokens = [(picture.stock_count, len(picture.features)) for picture in pictures]
        return short


@contextmanager
def attached(pruner: Pruner, vlm: nn.Module) -> Iterator[Attached]:
    """See `Pruner.attach`."""
    host = open_host(vlm)
    parts = [host.vlm, host.tower, host.language_model]
    for part in parts:
        if part in _ACTIVE:
            raise ValueError(
                f"{type(part).__name__} is already pruned by {type(_ACTIVE[part]).__name__}; leave its `with` block "
                "first, methods do not nest"
            )
    session = Attached(pruner, host)
    with ExitStack() as undo:
        for part in parts:
            _ACTIVE[part] = pruner
            undo.callback(_ACTIVE.pop, part, None)
        calls = OwnCalls(session) if isinstance(host, OwnHost) else TransformersCalls(session)
        undo.enter_context(calls.installed())
        if session.language is not None:
            undo.enter_context(session.language.hooked())
        yield session
