"""Recorded conversations -> question and answer turns, checked.

Two layouts are in use: LLaVA's `[{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]` and chat messages
`[{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]`. Both mark pictures by `<image>`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mm.data.sample import VisualSample
from mm.data.words import IMAGE_TOKEN

LLAVA_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
Message = tuple[str, str]


def _content(parts: Any, where: str) -> str:
    """Text of a message; typed parts become text with `<image>` where a picture stands."""
    if isinstance(parts, str):
        return parts
    if not isinstance(parts, Sequence):
        raise ValueError(f"{where}: content must be text or a list of parts, got {type(parts).__name__}")
    words = []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text" and isinstance(part.get("text"), str):
            words.append(part["text"])
        elif kind in ("image", "image_url"):
            words.append(IMAGE_TOKEN)
        else:
            raise ValueError(f"{where}: a part must be a text or an image, got {part!r}")
    return "\n".join(words)


def llava_messages(conversation: Any) -> list[Message]:
    """(role, text) of every message of a LLaVA record.

    Raises:
        ValueError: not a list of messages, an unknown speaker, or a message without text; the message is named.
    """
    if not isinstance(conversation, Sequence) or isinstance(conversation, str):
        raise ValueError(f"'conversations' must be a list, got {type(conversation).__name__}")
    messages = []
    for index, message in enumerate(conversation):
        speaker = message.get("from") if isinstance(message, Mapping) else None
        if speaker not in LLAVA_ROLES or not isinstance(message.get("value"), str):
            raise ValueError(
                f"message {index} must hold 'from' ({', '.join(LLAVA_ROLES)}) and 'value', got {message!r}"
            )
        messages.append((LLAVA_ROLES[speaker], message["value"]))
    return messages


def chat_messages(conversation: Any) -> list[Message]:
    """(role, text) of every chat message; typed parts are joined.

    Raises:
        ValueError: not a list of messages, an unknown role, or content of an unknown kind; the message is named.
    """
    if not isinstance(conversation, Sequence) or isinstance(conversation, str):
        raise ValueError(f"'messages' must be a list, got {type(conversation).__name__}")
    messages = []
    for index, message in enumerate(conversation):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("user", "assistant", "system") or "content" not in message:
            raise ValueError(
                f"message {index} must hold 'role' (user, assistant, system) and 'content', got {message!r}"
            )
        messages.append((role, _content(message["content"], f"message {index}")))
    return messages


def paired_turns(messages: Sequence[Message]) -> tuple[str, list[tuple[str, str]]]:
    """System text and (question, answer) pairs; the last answer is "" where it is still to be given.

    Raises:
        ValueError: speakers don't take turns, beginning with the user.
    """
    system = "\n".join(text for role, text in messages if role == "system")
    spoken = [(role, text.strip()) for role, text in messages if role != "system"]
    roles = [role for role, _ in spoken]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2):
        raise ValueError(
            f"user and assistant must take turns, beginning with the user; got {', '.join(roles) or 'nothing'}"
        )
    if len(spoken) % 2:
        spoken.append(("assistant", ""))
    return system, [(spoken[i][1], spoken[i + 1][1]) for i in range(0, len(spoken), 2)]


def conversation_sample(
    messages: Sequence[Message], images: Sequence[Any], read: Callable[[Any], np.ndarray], meta: dict[str, Any]
) -> VisualSample:
    """The whole conversation as one sample: the last turn is its question, the earlier ones are `meta["history"]`.

    Placeholders are counted before any picture is read. Those in front of the first question are dropped, since
    pictures come first anyway; if any stands elsewhere, all stay where they are.

    Raises:
        ValueError: the numbers of placeholders and pictures differ, or a picture can't be read.
        FileNotFoundError: a picture is missing.
    """
    system, turns = paired_turns(messages)
    found = sum(question.count(IMAGE_TOKEN) for question, _ in turns)
    if found and found != len(images):
        raise ValueError(f"the text has {found} {IMAGE_TOKEN} placeholders, the record has {len(images)} pictures")
    first = turns[0][0]
    bare = first.removeprefix(IMAGE_TOKEN).lstrip()
    while bare.startswith(IMAGE_TOKEN):
        bare = bare.removeprefix(IMAGE_TOKEN).lstrip()
    if first.count(IMAGE_TOKEN) == found and IMAGE_TOKEN not in bare:
        turns[0] = (bare, turns[0][1])
    meta = {**meta, **({"history": turns[:-1]} if turns[:-1] else {}), **({"system": system} if system else {})}
    question, answer = turns[-1]
    return VisualSample([read(image) for image in images], question, answer, meta=meta)
