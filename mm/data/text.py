"""The text-only corpus of the tiny language models.

Every row is one document, `<bos>` facts or sentences, then turns `question: ... answer: ...<eos>` until the row is
full: the same form in which a picture's questions are put, with words where the picture would stand. A language model
that was trained on it alone, then frozen, can answer about pictures once a projector or modulation speaks its words.

Dims: B rows, N tokens per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mm.data.lookups import LOOKUPS, decode
from mm.data.scene_text import SCENE_DOCUMENTS
from mm.data.shorthand import SHORTHAND
from mm.data.split import generator
from mm.data.tokenizer import tiny_tokenizer, word_ids

__all__ = ["TextConfig", "corpus", "text_batch", "tiny_tokenizer"]

DOCUMENTS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {**LOOKUPS, **SCENE_DOCUMENTS, **SHORTHAND}
"""Kind of document -> writer `f(rng, budget) -> ids (n,)`."""
MIN_LENGTH = 64


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Which documents the corpus consists of."""

    kinds: tuple[str, ...] = ("facts", "grid", "table", "inline", "moves", "described", "moving", "captions")
    """Kinds of documents."""
    weights: tuple[float, ...] = (0.25, 0.25, 0.1, 0.05, 0.05, 0.2, 0.05, 0.05)
    """How often each kind occurs, relative to the others."""
    loss_on: Literal["all", "answers"] = "all"
    """Predict every token, or only answers and the `<eos>` after them; random facts can't be predicted anyway."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - set(DOCUMENTS))
        if unknown or not self.kinds:
            raise ValueError(f"kinds must be some of {', '.join(DOCUMENTS)}; got {', '.join(unknown) or 'none'}")
        if len(self.kinds) != len(self.weights) or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise ValueError(f"weights must be {len(self.kinds)} numbers >= 0, not all 0; got {self.weights}")
        if self.loss_on not in ("all", "answers"):
            raise ValueError(f"loss_on must be 'all' or 'answers', got {self.loss_on!r}")


def document(seed: int, length: int, config: TextConfig | None = None) -> np.ndarray:
    """Token ids of the document of one seed with `<bos>` in front, at most `length` of them, (n,) int64.

    Raises:
        ValueError: `length` is below 64 tokens, too short for some kinds of documents.
    """
    if length < MIN_LENGTH:
        raise ValueError(f"a row of text needs at least {MIN_LENGTH} tokens, got {length}")
    config = config or TextConfig()
    rng = generator(seed, "text")
    shares = np.cumsum(config.weights) / np.sum(config.weights)
    kind = config.kinds[int(np.searchsorted(shares, rng.random(), side="right"))]
    ids = DOCUMENTS[kind](rng, length - 1)
    if len(ids) > length - 1:
        raise AssertionError(f"document of kind {kind!r} has {len(ids)} tokens, {length - 1} allowed")
    return np.concatenate([[word_ids()["<bos>"]], ids])


def corpus(seed: int, count: int, *, length: int = 512, config: TextConfig | None = None) -> list[str]:
    """The documents of seeds `seed` to `seed + count - 1` as text.

    Example:
        >>> "answer:" in corpus(0, 1, length=64)[0]
        True
    """
    return [decode(document(seed + index, length, config)[1:]) for index in range(count)]


def answer_mask(input_ids: np.ndarray) -> np.ndarray:
    """True on the tokens of an answer and the `<eos>` that ends it, same shape as `input_ids` (..., N)."""
    ids = word_ids()
    after = np.zeros(input_ids.shape, bool)
    colon = (input_ids[..., 1:] == ids[":"]) & (input_ids[..., :-1] == ids["answer"])
    after[..., 2:] = colon[..., :-1]
    ends = np.zeros(input_ids.shape, bool)
    ends[..., 1:] = input_ids[..., :-1] == ids["<eos>"]
    # Inside an answer wherever more answers have begun than tokens after an end have been passed.
    place = np.arange(input_ids.shape[-1])
    begun = np.maximum.accumulate(np.where(after, place, -1), axis=-1)
    ended = np.maximum.accumulate(np.where(ends, place, -1), axis=-1)
    return begun > ended


def text_batch(seed: int, batch: int, length: int, config: TextConfig | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of text for causal language modelling; row i is the document of `seed + i`, padded on the right.

    Args:
        seed: First seed; the next batch starts at `seed + batch`.
        batch: Rows (B).
        length: Tokens per row (N), at least 64; 512 holds a full board as sentences.
        config: Which documents.

    Returns:
        `input_ids` (B, N) int64 and `labels` (B, N) int64, -100 where nothing is to be predicted. Labels are not
        shifted, as Hugging Face models expect.
    """
    config = config or TextConfig()
    input_ids = np.full((batch, length), word_ids()["<pad>"], np.int64)
    real = np.zeros((batch, length), bool)
    for index in range(batch):
        ids = document(seed + index, length, config)
        input_ids[index, : len(ids)] = ids
        real[index, : len(ids)] = True
    keep = real & answer_mask(input_ids) if config.loss_on == "answers" else real
    return input_ids, np.where(keep, input_ids, -100)
