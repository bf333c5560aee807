"""From a raw caption to the text that is put into a template: the published order of steps, without a detour over ids.

Deviation: the published code encodes the caption to ids, cuts, and decodes again. Here the string itself is cut where
its last allowed token ends, so that no tokenizer changes what it does not understand; ordinary text comes out the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)

SPECIALS = 8
"""Tokens that a tokenizer may add around a text."""
ENDINGS = (".", "?", '"', "'")
"""A caption that ends in one of these gets no full stop."""


def clean_captions(captions: Sequence[str], tokenizer: Any, max_tokens: int = 1024) -> list[str]:
    """Captions as a template takes them.

    Special tokens of the tokenizer that stand in a caption as text are removed, it is cut to `max_tokens`, closed by
    a full stop, and its double quotes become single ones, so that a caption can never close the quotation around it.

    Args:
        captions: Any texts; an empty one stays empty.
        tokenizer: A fast Hugging Face tokenizer.
        max_tokens: Most tokens of a caption, the tokenizer's begin token included.

    Source: FLAME published code, caption preprocessing (paper arXiv:2411.11927 is silent on it).
    """
    specials = [str(token) for token in tokenizer.all_special_tokens]
    texts = [_without(caption, specials) for caption in captions]
    return [_closed(text) for text in _cut(texts, tokenizer, max_tokens)]


def _without(text: str, specials: Sequence[str]) -> str:
    """Text without special tokens; again and again, because removing one can put together another."""
    while any(token in text for token in specials):
        for token in specials:
            text = text.replace(token, "")
    return text


def _cut(texts: list[str], tokenizer: Any, max_tokens: int) -> list[str]:
    """Texts up to the end of their last allowed token; short ones are not tokenised for it."""
    long = [index for index, text in enumerate(texts) if len(text) >= max_tokens - SPECIALS]
    if not long:
        return texts
    found = tokenizer([texts[index] for index in long], return_offsets_mapping=True, verbose=False)["offset_mapping"]
    for index, offsets in zip(long, found, strict=True):
        if len(offsets) > max_tokens:
            text = texts[index]
            logger.warning("a caption of %d tokens was cut to %d: %r …", len(offsets), max_tokens, text[:60])
            texts[index] = text[: offsets[max_tokens - 1][1]]
    return texts


def _closed(text: str) -> str:
    if text and not text.endswith(ENDINGS):
        text += "."
    text = text.replace('"', "'")
    return text[:-1] + "." if text.endswith("?") else text
