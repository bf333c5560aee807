"""Put a pruner around a vision-language model for the length of a `with` block.

Nothing is patched globally and no class changes: the model gets one forward hook, its language blocks get hooks if the
method works there, and `generate` is replaced on this one instance, because it must shorten the prompt before Hugging
Face's generation looks at it. Leaving the block removes all of it, also after an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mm.pruning.base import Pruned, Pruner
from mm.pruning.hosts import Host, open_host
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

    def before_forward(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook on the model: shorten a direct call, and tell the language stage where the pictures are."""
        if args:
            raise ValueError("a pruned model takes keyword arguments only, for instance model(input_ids=...)")
        short = self.prepare(kwargs)
        if short is not kwargs and "position_ids" not in short:
            mask = short["attention_mask"].long()
            short["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        if self.language is not None:
            short = self.language.begin(short)
        return args, short

    def after_forward(self, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        """Hook on the model: the loss of a sequence that was shortened inside the language model."""
        return output if self.language is None else self.language.end(output)

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Hugging Face generation with a shortened prompt; the result begins with the full prompt, as always."""
        if inputs is not None:
            kwargs["input_ids"] = inputs
        prompt = kwargs.get("input_ids")
        short = self.prepare(kwargs)
        original = type(self.host.vlm).generate
        with torch.no_grad():
            if short is kwargs:
                return original(self.host.vlm, **kwargs)
            assert prompt is not None
            dropped = prompt.shape[1] - short["input_ids"].shape[1]
            if short.get("max_length") is not None:
                short["max_length"] -= dropped
            output = original(self.host.vlm, **short)
        return with_full_prompt(output, prompt, short["input_ids"].shape[1])


def with_full_prompt(output: Any, prompt: Tensor, short_length: int) -> Any:
    """Put the unpruned prompt back in front of what was generated.

    Args:
        output: Ids (B r, M + new) or an output object with `sequences`.
        prompt: Unpruned ids, (B, L).
        short_length: Length of the pruned prompt (M).
    """
    if not isinstance(output, Tensor):
        output.sequences = with_full_prompt(output.sequences, prompt, short_length)
        return output
    repeats = len(output) // len(prompt)
    full = prompt.to(output.device).repeat_interleave(repeats, dim=0)
    return torch.cat([full, output[:, short_length:]], dim=1)


@contextmanager
def attached(pruner: Pruner, vlm: nn.Module) -> Iterator[Attached]:
    """See `Pruner.attach`."""
    host = open_host(vlm)
    parts = [vlm, host.tower, host.language_model]
    for part in parts:
        if part in _ACTIVE:
            raise ValueError(
                f"{type(part).__name__} is already pruned by {type(_ACTIVE[part]).__name__}; leave its `with` block "
                "first, methods do not nest"
            )
    if "generate" in vars(vlm):
        raise ValueError(f"{type(vlm).__name__}.generate was replaced on this instance; restore it first")
    session = Attached(pruner, host)
    with ExitStack() as undo:
        for part in parts:
            _ACTIVE[part] = pruner
            undo.callback(_ACTIVE.pop, part, None)
        undo.callback(vlm.register_forward_pre_hook(session.before_forward, with_kwargs=True).remove)
        undo.callback(vlm.register_forward_hook(session.after_forward, with_kwargs=True).remove)
        if session.language is not None:
            undo.enter_context(session.language.hooked())
        vlm.__dict__["generate"] = session.generate
        undo.callback(vlm.__dict__.pop, "generate", None)
        core = host.core
        if hasattr(core, "rope_deltas"):  # what Qwen-VL remembers between calls
            undo.callback(setattr, core, "rope_deltas", core.rope_deltas)
        yield session
