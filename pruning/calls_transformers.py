"""Calls of a Hugging Face vision-language model, intercepted on one instance.

A forward hook shortens direct calls. `generate` is replaced on the instance, because the prompt must be short before
Hugging Face's generation looks at it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mm.vlm import positions_of

if TYPE_CHECKING:
    from mm.pruning.attach import Attached


class TransformersCalls:
    """`forward` and `generate` of one attached model."""

    def __init__(self, session: Attached) -> None:
        self.session = session
        self.vlm: Any = session.host.vlm

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Intercept; undone at the end.

        Raises:
            ValueError: somebody else replaced `generate` on this instance.
        """
        if "generate" in vars(self.vlm):
            raise ValueError(f"{type(self.vlm).__name__}.generate was replaced on this instance; restore it first")
        core = self.session.host.core
        with ExitStack() as undo:
            undo.callback(self.vlm.register_forward_pre_hook(self.before_forward, with_kwargs=True).remove)
            undo.callback(self.vlm.register_forward_hook(self.after_forward, with_kwargs=True).remove)
            vars(self.vlm)["generate"] = self.generate
            undo.callback(vars(self.vlm).pop, "generate", None)
            if hasattr(core, "rope_deltas"):  # what Qwen-VL remembers between calls
                undo.callback(setattr, core, "rope_deltas", core.rope_deltas)
            yield

    def before_forward(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook on the model: shorten a direct call, and tell the language stage where the pictures are."""
        if args:
            raise ValueError("a pruned model takes keyword arguments only, for instance model(input_ids=...)")
        short = self.session.prepare(kwargs)
        if short is not kwargs and "position_ids" not in short:
            short["position_ids"] = positions_of(short["attention_mask"])
        if self.session.language is not None:
            short = self.session.language.begin(short)
        return args, short

    def after_forward(self, module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        """Hook on the model: the loss of a sequence that was shortened inside the language model."""
        return output if self.session.language is None else self.session.language.end(module, output)

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Hugging Face generation with a shortened prompt; the result begins with the full prompt, as always."""
        if inputs is not None:
            kwargs["input_ids"] = inputs
        prompt = kwargs.get("input_ids")
        original = type(self.vlm).generate
        with torch.no_grad():
            short = self.session.prepare(kwargs)
        if short is kwargs:
            return original(self.vlm, **kwargs)
        assert prompt is not None
        if short.get("max_length") is not None:
            short["max_length"] -= prompt.shape[1] - short["input_ids"].shape[1]
        output = original(self.vlm, **short)
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
