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
from mm.pruning.hosts.own import OwnHost
from mm.pruning.llm_hooks import LanguageHooks
from mm.vlm import left_padded, positions_of

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
    def installed(self) -> Iterator[None]:
        """Hooks and replaced methods on this one model."""
        vlm = self.host.vlm
        own = isinstance(self.host, OwnHost)
        replaced = {"forward": self.own_forward, "generate": self.own_generate} if own else {"generate": self.generate}
        taken = [name for name in replaced if name in vars(vlm)]
        if taken:
            raise ValueError(f"{type(vlm).__name__}.{taken[0]} was replaced on this instance; restore it first")
        with ExitStack() as undo:
            target = vlm.backbone.model if own else vlm  # where the language stage sees each step
            before = self.before_language if own else self.before_forward
            undo.callback(target.register_forward_pre_hook(before, with_kwargs=True).remove)
            undo.callback(target.register_forward_hook(self.after_forward, with_kwargs=True).remove)
            if self.language is not None:
                undo.enter_context(self.language.hooked())
            for name, method in replaced.items():
                vlm.__dict__[name] = method
                undo.callback(vlm.__dict__.pop, name, None)
            if hasattr(self.host.core, "rope_deltas"):  # what Qwen-VL remembers between calls
                undo.callback(setattr, self.host.core, "rope_deltas", self.host.core.rope_deltas)
            yield

    # --- models of transformers ----------------------------------------------------------------------------------

    def before_forward(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook on the model: shorten a direct call, and tell the language stage where the pictures are."""
        if args:
            raise ValueError("a pruned model takes keyword arguments only, for instance model(input_ids=...)")
        short = self.prepare(kwargs)
        if short is not kwargs and "position_ids" not in short:
            short["position_ids"] = positions_of(short["attention_mask"])
        if self.language is not None:
            short = self.language.begin(short)
        return args, short

    def after_forward(self, module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        """Hook on the model: the loss of a sequence that was shortened inside the language model."""
        return output if self.language is None else self.language.end(module, output)

    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Any:
        """Hugging Face generation with a shortened prompt; the result begins with the full prompt, as always."""
        if inputs is not None:
            kwargs["input_ids"] = inputs
        prompt = kwargs.get("input_ids")
        original = type(self.host.vlm).generate
        with torch.no_grad():
            short = self.prepare(kwargs)
        if short is kwargs:
            return original(self.host.vlm, **kwargs)
        assert prompt is not None
        if short.get("max_length") is not None:
            short["max_length"] -= prompt.shape[1] - short["input_ids"].shape[1]
        output = original(self.host.vlm, **short)
        return with_full_prompt(output, prompt, short["input_ids"].shape[1])

    # --- our own model -------------------------------------------------------------------------------------------

    def own_embedded(self, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Embeddings (B, M, D) with the pictures in place, and the shortened arguments that go with them."""
        vlm, host = self.host.vlm, self.host
        assert isinstance(host, OwnHost)
        short = self.prepare(inputs)
        if short is not inputs:
            features = short.pop("mm_encoder_outputs")["image"].pooler_output
            embedded = vlm.splice(short["input_ids"], torch.cat(features))
        else:
            embedded = vlm._embedded(inputs["input_ids"], inputs.get("pixel_values"), inputs.get("visual_counts"))
            pictures = 0 if inputs.get("pixel_values") is None else len(inputs["pixel_values"])
            features = [embedded[0, :0].new_empty(vlm.tokens_per_picture, 0)] * pictures
        if self.language is not None and features:
            self.language.announced = (short["input_ids"], [len(row) for row in features])
        return embedded, short

    def own_forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Any:
        """`VisionLanguageModel.forward` with fewer visual tokens."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embedded, short = self.own_embedded({**inputs, "input_ids": input_ids, "attention_mask": mask})
        mask = short.pop("attention_mask")
        for name in ("input_ids", "pixel_values", "visual_counts", "position_ids"):
            short.pop(name, None)
        return self.host.vlm.backbone(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions_of(mask), **short
        )

    @torch.no_grad()
    def own_generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        visual_counts: Tensor | None = None,
        *,
        max_new_tokens: int = 64,
        **options: Any,
    ) -> Tensor:
        """`VisionLanguageModel.generate` with fewer visual tokens; new ids only."""
        vlm = self.host.vlm
        options.pop("labels", None)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask, input_ids = left_padded(mask, input_ids)
        if vlm._processor is not None:
            options = {"pad_token_id": vlm.processor.pad_token_id, **options}
            options.setdefault("eos_token_id", vlm.processor.eos_token_id)
        given = {"pixel_values": pixel_values, "visual_counts": visual_counts}
        embedded, short = self.own_embedded({**given, "input_ids": input_ids, "attention_mask": mask})
        return vlm.backbone.generate(
            inputs_embeds=embedded, attention_mask=short["attention_mask"], max_new_tokens=max_new_tokens, **options
        )

    def before_language(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook on the language model: tell the language stage where the pictures are."""
        return args, kwargs if self.language is None else self.language.begin(kwargs)


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
        undo.enter_context(session.installed())
        yield session
