"""Pictures and questions -> the batch that a vision-language model reads.

Every picture has one placeholder in the text; here it is repeated once per visual token, so that ids, mask, labels and
positions have their final length before the model runs. Counts are compared per sample and a mismatch names it.
Dims: B samples, L tokens, T pictures (tiles and frames included) of the whole batch, M visual tokens per picture.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mm.vision import ImageProcessor, load_image, tile_image
from mm.vlm.batch import PaddingSide, pad_rows
from mm.vlm.config import PromptConfig
from mm.vlm.prompt import Conversation, Segment, as_turns, place_pictures, render

IGNORED = -100
"""Label of a token that is read but not learned."""


class VLMProcessor:
    """Tokenizer and picture preprocessing of one model.

    Args:
        tokenizer: A Hugging Face tokenizer; copied, and given the image token if it lacks it.
        image_processor: Preprocessing of the model's tower.
        tokens_per_picture: Visual tokens per picture (M); 0 for models that take pictures beside the text: then
            placeholders are removed.
        prompt: From a question to a prompt.
        grids: Any-resolution grids; () = one picture each.
        max_length: Positions of the language model; a longer sample is an error. None: not checked.
    """

    def __init__(
        self,
        tokenizer: Any,
        image_processor: ImageProcessor,
        *,
        tokens_per_picture: int,
        prompt: PromptConfig | None = None,
        grids: Sequence[tuple[int, int]] = (),
        max_length: int | None = None,
    ) -> None:
        self.prompt = prompt or PromptConfig()
        self.tokenizer = with_image_token(tokenizer, self.prompt.image_token)
        self.image_processor = image_processor
        self.tokens_per_picture = tokens_per_picture
        self.grids = tuple(grids)
        self.max_length = max_length
        self.image_token_id: int = self.tokenizer.convert_tokens_to_ids(self.prompt.image_token)
        self.eos_token_id: int | None = self.tokenizer.eos_token_id
        pad = self.tokenizer.pad_token_id
        self.pad_token_id: int = pad if pad is not None else (self.eos_token_id or 0)  # masked, so any id will do

    def __call__(
        self,
        images: Any,
        text: Conversation | Sequence[Conversation],
        answers: str | Sequence[str | None] | None = None,
        *,
        raw: bool = False,
        padding_side: PaddingSide = "left",
    ) -> dict[str, Tensor]:
        """Build a batch.

        Args:
            images: One sample: None, a picture, or several (a list, or frames (F, H, W, 3)). A batch: a list with one
                such entry per text, or None for a batch of text alone.
            text: A question, a list of messages, or a list of either (a batch). Without any placeholder the pictures
                go in front of the first question; otherwise there must be as many placeholders as pictures.
            answers: For training: what the model should answer, per text. An empty text with an answer is a caption
                or plain text to be learned whole.
            raw: `text` is a finished prompt; no template is applied.
            padding_side: "left" to generate, either to train; the answers do not depend on it.

        Returns:
            `input_ids`, `attention_mask` (1 = token) (B, L) int64; `pixel_values` (T, 3, H, W) float32;
            `visual_counts` (B,) int64; with answers `labels` (B, L), -100 where nothing is learned.

        Raises:
            ValueError: an empty prompt, a bad picture, counts that do not fit; the message names the sample.
            FileNotFoundError: a picture file that is not there.
        """
        single, texts, replies = as_samples(text, answers)
        groups = group_images([images] if single else images, len(texts))
        pictures: list[Image.Image] = []
        rows, counts = [], []
        for index, (group, conversation, reply) in enumerate(zip(groups, texts, replies, strict=True)):
            tiles = [self._tiles(image, f"sample {index}, picture {j}") for j, image in enumerate(group)]
            try:
                rows.append(self.encode(conversation, [len(tile) for tile in tiles], answer=reply, raw=raw))
            except ValueError as error:
                raise ValueError(f"sample {index}: {error}") from error
            pictures += [picture for tile in tiles for picture in tile]
            counts.append(sum(len(tile) for tile in tiles))
        ids = [row for row, _ in rows]
        batch = {
            "input_ids": pad_rows(ids, self.pad_token_id, padding_side),
            "attention_mask": pad_rows([[1] * len(row) for row in ids], 0, padding_side),
            "pixel_values": self.image_processor(pictures),
            "visual_counts": torch.tensor(counts, dtype=torch.long),
        }
        labels = [label for _, label in rows]
        if any(token != IGNORED for label in labels for token in label):
            batch["labels"] = pad_rows(labels, IGNORED, padding_side)
        return batch

    def encode(
        self, conversation: Conversation, tiles: Sequence[int], *, answer: str | None = None, raw: bool = False
    ) -> tuple[list[int], list[int]]:
        """One sample -> ids and labels, placeholders repeated.

        Args:
            conversation: Question or messages.
            tiles: For each picture of the sample, how many tower inputs it became.
            answer: Training answer of the last question.
            raw: `conversation` is a finished prompt.

        Raises:
            ValueError: empty prompt, wrong number of placeholders, or too long.
        """
        system, turns = as_turns(conversation, answer, self.prompt.image_token)
        turns = place_pictures(turns, len(tiles), self.prompt.image_token)
        # A caption or plain text has no question to put into a template; a finished prompt needs none.
        bare = raw or not turns[0][0].replace(self.prompt.image_token, "").strip()
        prompt = replace(self.prompt, format="template", template="{prompt}", system="") if bare else self.prompt
        ids: list[int] = []
        labels: list[int] = []
        seen = 0
        for segment in render(system, turns, prompt, self.tokenizer):
            for token in self._tokenize(segment):
                times = 1
                if token == self.image_token_id:
                    times = tiles[seen] * self.tokens_per_picture if seen < len(tiles) else 0
                    seen += 1
                ids += [token] * times
                labels += [token if segment.learned else IGNORED] * times
        if seen != len(tiles):
            raise ValueError(
                f"the rendered prompt has {seen} {self.prompt.image_token} tokens for {len(tiles)} pictures; the "
                "tokenizer or its chat template drops or repeats placeholders"
            )
        if self.max_length is not None and len(ids) > self.max_length:
            visual = sum(tiles) * self.tokens_per_picture
            raise ValueError(
                f"{len(ids)} tokens ({visual} of them visual), the language model has {self.max_length} positions; "
                "shorten the text or use fewer pictures or tiles"
            )
        return ids, labels

    def _tokenize(self, segment: Segment) -> list[int]:
        bos = self.tokenizer.bos_token
        opening = segment.opening and not (bos and segment.text.startswith(bos))
        ids: list[int] = self.tokenizer(segment.text, add_special_tokens=opening).input_ids
        return [*ids, self.eos_token_id] if segment.closed and self.eos_token_id is not None else ids

    def decode(self, ids: Tensor) -> list[str]:
        """Generated ids (B, n) -> texts, without special tokens."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def save_pretrained(self, folder: Any) -> None:
        """Write the tokenizer files, chat template included."""
        self.tokenizer.save_pretrained(folder)

    def _tiles(self, image: Any, name: str) -> list[Image.Image]:
        """One picture -> the tower inputs it becomes: itself, and its tiles if it is large."""
        picture = load_image(image, name=None if isinstance(image, str) or hasattr(image, "__fspath__") else name)
        if not self.grids:
            return [picture]
        return tile_image(picture, tile=self.image_processor.preprocessing.height, grids=self.grids).pictures


def with_image_token(tokenizer: Any, image_token: str) -> Any:
    """A copy of the tokenizer in which the placeholder is one special token."""
    tokenizer = copy.deepcopy(tokenizer)
    if image_token not in tokenizer.get_vocab():
        tokenizer.add_tokens([image_token], special_tokens=True)
    return tokenizer


def as_samples(
    text: Conversation | Sequence[Conversation], answers: str | Sequence[str | None] | None
) -> tuple[bool, Sequence[Any], list[str | None]]:
    """Whether one sample was given, and in any case lists of conversations and answers.

    Raises:
        ValueError: no text, or another number of answers than texts.
    """
    if not text and not isinstance(text, str):
        raise ValueError("text is an empty list; a batch needs at least one sample")
    single = isinstance(text, str) or isinstance(text[0], dict)
    texts: Sequence[Any] = [text] if single else text
    replies: list[str | None] = [answers] if isinstance(answers, str) else list(answers or [None] * len(texts))
    if len(replies) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(replies)} answers")
    return single, texts, replies


def group_images(images: Any, samples: int) -> list[list[Any]]:
    """One list of pictures per sample.

    Raises:
        ValueError: another number of entries than texts.
    """
    if images is None:
        return [[] for _ in range(samples)]
    entries = list(images) if isinstance(images, Iterable) and not isinstance(images, str | bytes) else [images]
    if len(entries) != samples:
        raise ValueError(
            f"{samples} texts but {len(entries)} entries of images; give one entry per text: a picture, a list or None"
        )
    return [_as_list(entry) for entry in entries]


def _as_list(entry: Any) -> list[Any]:
    if entry is None:
        return []
    if isinstance(entry, np.ndarray) and entry.ndim == 4:
        return list(entry)
    return list(entry) if isinstance(entry, list | tuple) else [entry]
