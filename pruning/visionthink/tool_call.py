"""Reading the request for the full picture out of a generated turn.

Two readers. "release" repeats the published one to the letter, with what it lets pass (another function name, text
around the object) and what it refuses (pretty-printed JSON, `arguments` before `name`). "strict" accepts exactly one
call that fits the function's signature, however it is laid out.
Source: VisionThink (Yang et al. 2025, arXiv:2507.13348), appendix on prompts, and the published rollout code.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

FUNCTION = "resize_image"
ACTION = "resize"
OPEN, CLOSE = "<tool_call>", "</tool_call>"

CALL = re.compile(re.escape(OPEN) + "(.*?)" + re.escape(CLOSE), re.DOTALL)
_OBJECT = re.compile(r"\{.*?\}\}")  # without dot-all: the published reader sees one line, up to the first `}}`

NO_OBJECT = "no object found"
INVALID_JSON = "invalid json"
MISSING_KEY = "missing key"
WRONG_ACTION = "wrong action or more than one object"
WRONG_NAME = "wrong function name"
EXTRA_ARGUMENT = "unknown argument"


@dataclass(frozen=True)
class ToolCall:
    """What a generated turn asks for."""

    outcome: Literal["finished", "image", "error"]
    """"finished": no call; "image": a valid call; "error": a call that cannot be followed."""
    error: str | None = None
    """Kind of error, one of the constants of this module."""


FINISHED, IMAGE = ToolCall("finished"), ToolCall("image")


def parse_tool_call(text: str, variant: Literal["release", "strict"] = "release") -> ToolCall:
    """Whether a turn calls the tool, and whether the call is valid.

    Args:
        text: One decoded turn of the assistant.
        variant: "release" as published, "strict" by the function's signature.

    Raises:
        ValueError: unknown variant.

    Example:
        >>> call = '{"name": "resize_image", "arguments": {"action": "resize"}}'
        >>> parse_tool_call(f"<tool_call>{call}</tool_call>").outcome
        'image'
        >>> parse_tool_call("<tool_call>larger, please</tool_call>").error
        'no object found'
    """
    if variant not in ("release", "strict"):
        raise ValueError(f"unknown variant {variant!r}; choose 'release' or 'strict'")
    calls = CALL.findall(text)
    if not calls:
        return FINISHED
    error = _release_error(calls) if variant == "release" else _strict_error(calls)
    return IMAGE if error is None else ToolCall("error", error)


def _release_error(calls: list[str]) -> str | None:
    found = [piece for call in calls for piece in _OBJECT.findall(call)]
    if not found:
        return NO_OBJECT
    actions = []
    for piece in found:
        call = _loaded(piece)
        if call is None:
            return INVALID_JSON
        arguments = call.get("arguments") if isinstance(call, dict) else None
        if not isinstance(arguments, dict) or "action" not in arguments:
            return MISSING_KEY
        actions.append(arguments["action"])
    return None if actions == [ACTION] else WRONG_ACTION


def _strict_error(calls: list[str]) -> str | None:
    if len(calls) > 1:
        return WRONG_ACTION
    call = _loaded(calls[0])
    if call is None:
        return INVALID_JSON if "{" in calls[0] else NO_OBJECT
    arguments = call.get("arguments") if isinstance(call, dict) else None
    if not isinstance(arguments, dict) or "action" not in arguments or "name" not in call:
        return MISSING_KEY
    if call["name"] != FUNCTION:
        return WRONG_NAME
    if arguments["action"] != ACTION:
        return WRONG_ACTION
    return EXTRA_ARGUMENT if set(arguments) != {"action"} or set(call) != {"name", "arguments"} else None


def _loaded(text: str) -> Any | None:
    """The JSON value of a text, or None; a deeply nested one is none, too."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
