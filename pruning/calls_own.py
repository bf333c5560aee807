"""Calls of our own `VisionLanguageModel`, intercepted on one instance.

The model embeds its prompt itself and hands embeddings to the language model, so both `forward` and `generate` are
replaced on the instance; a hook on the language model sees each of its steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mm.vlm import left_padded, positions_of

if TYPE_CHECKING:
    from mm.pruning.attach import Attached


class OwnCalls:
    """`forward` and `generate` of one attached model."""

    def __init__(self, session: Attached) -> None:
        self.session = session
        self.vlm: Any = session.host.vlm

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Intercept; undone at the end.

        Raises:
            ValueError: somebody else replaced a method on this instance.
        """
        replaced = {"forward": self.forward, "generate": self.generate}
        taken = [name for name in replaced if name in vars(self.vlm)]
        if taken:
            raise ValueError(f"{type(self.vlm).__name__}.{taken[0]} was replaced on this instance; restore it first")
        language = self.vlm.backbone.model
        with ExitStack() as undo:
            undo.callback(language.register_forward_pre_hook(self.before_language, with_kwargs=True).remove)
            undo.callback(language.register_forward_hook(self.after_language, with_kwargs=True).remove)
            for name, method in replaced.items():
                vars(self.vlm)[name] = method
                undo.callback(vars(self.vlm).pop, name, None)
            yield

    def embedded(self, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Embeddings (B, M, D) with the pictures in place, and the shortened arguments that go with them."""
        vlm, language = self.vlm, self.session.language
        short = self.session.prepare(inputs)
        if short is not inputs:
            features = short.pop("mm_encoder_outputs")["image"].pooler_output
            embedded = vlm.splice(short["input_ids"], torch.cat(features))
        else:
            embedded = vlm._embedded(inputs["input_ids"], inputs.get("pixel_values"), inputs.get("visual_counts"))
            pictures = 0 if inputs.get("pixel_values") is None else len(inputs["pixel_values"])
            features = [embedded[0, :0].new_empty(vlm.tokens_per_picture, 0)] * pictures
        if language is not None and features:
            language.announced = (short["input_ids"], [len(row) for row in features])
        return embedded, short

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any) -> Any:
        """`VisionLanguageModel.forward` with fewer visual tokens."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embedded, short = self.embedded({**inputs, "input_ids": input_ids, "attention_mask": mask})
        mask = short.pop("attention_mask")
        for name in ("input_ids", "pixel_values", "visual_counts", "position_ids"):
            short.pop(name, None)
        return self.vlm.backbone(inputs_embeds=embedded, attention_mask=mask, position_ids=positions_of(mask), **short)

    @torch.no_grad()
    def generate(
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
        vlm = self.vlm
        options.pop("labels", None)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask, input_ids = left_padded(mask, input_ids)
        if vlm._processor is not None:
            options = {"pad_token_id": vlm.processor.pad_token_id, **options}
            options.setdefault("eos_token_id", vlm.processor.eos_token_id)
        given = {"pixel_values": pixel_values, "visual_counts": visual_counts}
        embedded, short = self.embedded({**given, "input_ids": input_ids, "attention_mask": mask})
        return vlm.backbone.generate(
            inputs_embeds=embedded, attention_mask=short["attention_mask"], max_new_tokens=max_new_tokens, **options
        )

    def before_language(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook on the language model: tell the language stage where the pictures are."""
        return args, kwargs if self.session.language is None else self.session.language.begin(kwargs)

    def after_language(self, module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        """Hook on the language model: the loss of a sequence that was shortened inside it."""
        return output if self.session.language is None else self.session.language.end(module, output)
