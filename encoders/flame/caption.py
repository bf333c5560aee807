"""From a raw caption to the text that is put into a template: the published order of steps, without a detour over ids.

Deviation: the published code encodes the caption to ids, cuts, and decodes again. Here the string itself is cut where
its last allowed token ends, so that no tokenizer changes what it does not understand; ordinary text comes out the same.
"""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

ENDINGS = (".", "?", '"', "'")
"""A caption that ends in one of these gets no full stop."""


def clean_caption(caption: str, tokenizer: Any, max_tokens: int = 1024) -> str:
    """A caption as a template takes it.

    Special tokens of the tokenizer that stand in the caption as text are removed, it is cut to `max_tokens`, closed by
    a full stop, and its double quotes become single ones, so that a caption can never close the quotation around it.

    Args:
        caption: Any text; empty stays empty.
        tokenizer: A fast Hugging Face tokenizer.
        max_tokens: Most tokens of the caption, the tokenizer's begin token included.

    Source: FLAME published code, caption preprocessing (paper arXiv:2411.11927 is silent on it).
    """
    text = _cut(_without_specials(caption, tokenizer), tokenizer, max_tokens)
    if text and not text.endswith(ENDINGS):
        text += "."
    text = text.replace('"', "'")
    return text[:-1] + "." if text.endswith("?") else text


def _without_specials(text: str, tokenizer: Any) -> str:
    """Text without special tokens; again and again, because removing one can put together another."""
    specials = [str(token) for token in tokenizer.all_special_tokens]
    while any(token in text for token in specials):
        for token in specials:
            text = text.replace(token, "")
    return text


def _cut(text: str, tokenizer: Any, max_tokens: int) -> str:
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    if len(offsets) <= max_tokens:
        return text
    logger.warning("a caption of %d tokens was cut to %d: %r …", len(offsets), max_tokens, text[:60])
    return text[: offsets[max_tokens - 1][1]]
