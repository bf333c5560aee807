"""Generation with pictures in force.

Hugging Face's `generate` refuses keywords it does not know, so the context is put on the stage around it. Beams and
several returned sequences multiply the text rows; the norms notice and let the rows of one sample share its pictures
(beam search never moves a row to another sample), so nothing has to be copied or reordered.

Guidance needs the logits of the same text without pictures. Its second pass runs inside a logits processor with a cache
of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from mm.encoders.lavi.context import VisualContext

if TYPE_CHECKING:
    from mm.encoders.lavi.lavi import Lavi
    from mm.encoders.lavi.prefix_cache import Prefix


@torch.no_grad()
def generate(
    lavi: Lavi,
    input_ids: Tensor,
    visual: VisualContext | None,
    *,
    guidance: float | None,
    prefix: Prefix | None,
    **kwargs: Any,
) -> Any:
    """See `Lavi.generate`."""
    if input_ids.ndim != 2 or input_ids.shape[1] == 0:
        raise ValueError(f"input_ids must be (B, N) with at least one token, got shape {tuple(input_ids.shape)}")
    strength = lavi.config.guidance if guidance is None else guidance
    if prefix is not None:
        if "past_key_values" in kwargs:
            raise ValueError("generate: pass either prefix or past_key_values")
        kwargs["past_key_values"] = prefix.resume(lavi, input_ids, visual)
    if strength != 1.0 and visual is not None:
        processors = LogitsProcessorList(kwargs.pop("logits_processor", None) or [])
        processors.append(
            VisualGuidance(lavi, strength, kwargs.get("attention_mask"), beams=_num_beams(lavi, kwargs) > 1)
        )
        kwargs["logits_processor"] = processors
    with lavi.seeing(visual, rows=len(input_ids)):
        return lavi.language_model.generate(input_ids, **kwargs)  # type: ignore[operator]


def _num_beams(lavi: Lavi, kwargs: dict[str, Any]) -> int:
    config: Any = kwargs.get("generation_config") or lavi.backbone.model.generation_config
    return int(kwargs.get("num_beams") or config.num_beams or 1)


class VisualGuidance(LogitsProcessor):
    """Moves the scores along the direction that the pictures add: plain + strength * (seeing - plain), in log space.

    Args:
        lavi: The model; its plain language model gives the unconditional scores.
        strength: 1 changes nothing, more trusts the pictures more.
        attention_mask: Padding mask of the prompt, or None.
        beams: Beam search reorders rows between steps, so the plain pass cannot keep a cache and reads the text again.
    """

    def __init__(self, lavi: Lavi, strength: float, attention_mask: Tensor | None, *, beams: bool) -> None:
        self.lavi, self.strength, self.prompt_mask, self.beams = lavi, strength, attention_mask, beams
        self.cache: Any = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (R, vocabulary) of the next token, guided; tokens that are forbidden stay forbidden."""
        plain = self._plain(input_ids).to(scores).log_softmax(-1)
        seeing = scores.log_softmax(-1)
        guided = plain + self.strength * (seeing - plain)
        return guided.masked_fill(scores == -torch.inf, -torch.inf).log_softmax(-1)

    def _plain(self, input_ids: Tensor) -> Tensor:
        mask = self._mask(input_ids)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        cached = 0 if self.cache is None else self.cache.get_seq_length()
        with self.lavi.seeing(None):
            output = self.lavi.language_model(
                input_ids=input_ids[:, cached:],
                attention_mask=mask,
                position_ids=positions[:, cached:],
                past_key_values=self.cache,
                use_cache=not self.beams,
            )
        self.cache = None if self.beams else output.past_key_values
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def _mask(self, input_ids: Tensor) -> Tensor:
        """Padding mask of prompt and generated tokens, one row per running sequence."""
        mask = torch.ones_like(input_ids)
        if self.prompt_mask is not None:
            rows = self.prompt_mask.repeat_interleave(len(input_ids) // len(self.prompt_mask), dim=0)
            mask[:, : rows.shape[1]] = rows.to(mask.dtype)
        return mask
