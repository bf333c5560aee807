"""Format of a finished conversation, and what its answer is.

A direct answer thinks once and answers once. A conversation with calls thinks and calls in every turn but the last,
which is a direct answer. The published check looks at tags alone; "strict_json" also wants every call to be valid, as
the paper describes, and forgives white space around the last turn.
Source: VisionThink (Yang et al. 2025, arXiv:2507.13348), section 3.3, and the published reward code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from mm.pruning.visionthink.tool_call import CALL, CLOSE, OPEN, parse_tool_call

_DIRECT = re.compile(r"^<think>.*</think>.*<answer>.*</answer>$", re.DOTALL)
_CALLING = re.compile(r"^<think>.*</think>.*<tool_call>.*</tool_call>$", re.DOTALL)
_GENERAL = re.compile(r"\s*<think>.*?</think>\s*<answer>.*?</answer>\s*", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_THINK_TAGS = ("<think>", "</think>")
_ANSWER_TAGS = ("<answer>", "</answer>")

FormatVariant = Literal["release", "strict_json"]


def format_reward(segments: Sequence[str], variant: FormatVariant = "release") -> tuple[int, int]:
    """Score 1 or 0 of a conversation, and how often it called (or tried to call) the tool.

    Args:
        segments: The generated turns, oldest first, without end markers.
        variant: "release" checks tags as published; "strict_json" also parses the calls.

    Returns:
        (score, tool_count). Calls are counted in all turns but the last, or in the only one, up to the first turn that
        is malformed.

    Raises:
        ValueError: no segment, or an unknown variant.

    Example:
        >>> format_reward(["<think>two bars</think><answer>2</answer>"])
        (1, 0)
        >>> format_reward(["<think>too small</think><tool_call>?</tool_call>", "<think>now</think><answer>2</answer>"])
        (1, 1)
    """
    if variant not in ("release", "strict_json"):
        raise ValueError(f"unknown variant {variant!r}; choose 'release' or 'strict_json'")
    if not segments:
        raise ValueError("a conversation has at least one generated turn")
    if len(segments) == 1:
        only = segments[0].strip()
        return int(_is_direct(only)), int(bool(CALL.search(only)))
    count = 0
    for segment in segments[:-1]:
        count += bool(CALL.search(segment))
        if not _is_calling(segment.strip(), variant):
            return 0, count
    last = segments[-1].strip() if variant == "strict_json" else segments[-1]
    return int(_is_direct(last)), count


def general_format_reward(response: str) -> int:
    """Score 1 or 0 of a single turn of VisionThink-General: thinking, then an answer, white space between them only.

    Tags are not counted, as published: more than one block passes.
    """
    return int(bool(_GENERAL.fullmatch(response)))


def extract_answer(segments: Sequence[str]) -> str:
    """Text of the last answer block of a conversation, the whole text where there is none; stripped."""
    return " ".join(segments).split("<answer>")[-1].split("</answer>")[0].strip()


def first_answer(segments: Sequence[str]) -> str | None:
    """Text of the first complete answer block, as written, or None."""
    found = _ANSWER.search(" ".join(segments))
    return None if found is None else found.group(1)


def _once(text: str, tags: Sequence[str]) -> bool:
    return all(text.count(tag) == 1 for tag in tags)


def _is_direct(text: str) -> bool:
    tagged = _once(text, _THINK_TAGS) and _once(text, _ANSWER_TAGS)
    return bool(_DIRECT.match(text)) and tagged and OPEN not in text and CLOSE not in text


def _is_calling(text: str, variant: FormatVariant) -> bool:
    if not _CALLING.match(text) or not _once(text, _THINK_TAGS) or any(tag in text for tag in _ANSWER_TAGS):
        return False
    if variant == "strict_json":
        return parse_tool_call(text, "strict").outcome == "image"
    return text.count(OPEN) == 1 or text.count(CLOSE) == 1
