"""The one record that every data set yields: pictures, a question, its answer.

Dims: H, W height and width of one picture in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class VisualSample:
    """Pictures with a question and its answer, or plain text.

    A caption pair has an empty `question`; a text-only row has no pictures and carries its words in `text`.

    Args:
        images: Pictures, tiles or frames in reading or time order, each (H, W, 3) uint8 RGB.
        question: What is asked, without chat mark-up. Pictures come in front of it; where their position in the text
            matters, the conversation holds one `<image>` per picture instead.
        answer: What should be answered.
        text: Words to be modelled as they are: the caption of the pictures, or a text-only document.
        meta: Plain values about the origin (seed, file, labels, ...); `meta["history"]` holds earlier
            (question, answer) turns of the same conversation.

    Raises:
        ValueError: a picture is not (H, W, 3) uint8; the message says which one.
    """

    images: list[np.ndarray]
    question: str
    answer: str
    text: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, image in enumerate(self.images):
            array = np.asarray(image)
            if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
                raise ValueError(
                    f"image {index} of a sample must be a (height, width, 3) uint8 array, "
                    f"got shape {array.shape} and dtype {array.dtype}"
                )

    @property
    def turns(self) -> list[tuple[str, str]]:
        """The whole conversation as (question, answer) pairs; the last one is this sample's own."""
        return [*(tuple(turn) for turn in self.meta.get("history", ())), (self.question, self.answer)]
