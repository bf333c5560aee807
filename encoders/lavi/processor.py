"""Pictures and questions -> the batch that a LaVi model reads: text without placeholders, pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mm.encoders.lavi.placement import strip_placeholders
from mm.vision import ImageProcessor
from mm.vlm.batch import PaddingSide
from mm.vlm.config import PromptConfig
from mm.vlm.processor import VLMProcessor
from mm.vlm.prompt import Conversation


class LaviProcessor(VLMProcessor):
    """The processor of `mm.vlm`, with the placeholders taken out of the text again.

    Args:
        tokenizer: A Hugging Face tokenizer.
        image_processor: Preprocessing of the model's tower.
        interleaved: Remember where each picture stood (`image_starts` in the batch).
        prompt: From a question to a prompt.
        grids: Any-resolution grids; () = one picture each.
        max_length: Positions of the language model; only text counts.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_processor: ImageProcessor,
        *,
        interleaved: bool = False,
        prompt: PromptConfig | None = None,
        grids: Sequence[tuple[int, int]] = (),
        max_length: int | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            image_processor,
            tokens_per_picture=int(interleaved),
            prompt=prompt,
            grids=grids,
            max_length=max_length,
        )

    def __call__(
        self,
        images: Any,
        text: Conversation | Sequence[Conversation],
        answers: str | Sequence[str | None] | None = None,
        *,
        raw: bool = False,
        padding_side: PaddingSide = "left",
    ) -> dict[str, Tensor]:
        """A batch as `VLMProcessor` makes it, but without placeholders in `input_ids`.

        Returns:
            Its keys, and for interleaved models `image_starts` (B, P): text tokens in front of each picture.
        """
        batch = super().__call__(images, text, answers, raw=raw, padding_side=padding_side)
        if not self.tokens_per_picture:
            return batch
        placed = strip_placeholders(
            batch["input_ids"],
            self.image_token_id,
            attention_mask=batch["attention_mask"],
            labels=batch.get("labels"),
            pad_token_id=self.pad_token_id,
            padding_side=padding_side,
        )
        batch |= {
            "input_ids": placed.input_ids,
            "attention_mask": placed.attention_mask.long(),
            "image_starts": placed.image_starts,
        }
        return batch if placed.labels is None else batch | {"labels": placed.labels}
