"""Conversations as text segments: which words are read and which are to be learned.

A segment is tokenized on its own, so that a prompt has the same ids in training and when a question is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mm.vlm.config import PromptConfig

Turn = tuple[str, str | None]
"""(question, answer); the answer is None where the model is to give it."""
Conversation = str | Sequence[Mapping[str, Any]]
"""A question, or messages {"role": "system" | "user" | "assistant", "content": text or parts}."""


@dataclass(frozen=True)
class Segment:
    """A piece of a prompt."""

    text: str
    """As it goes to the tokenizer."""
    learned: bool = False
    """An answer: its tokens are labels."""
    closed: bool = False
    """Ends with the end-of-sequence token, which the tokenizer adds."""
    opening: bool = False
    """The tokenizer puts its begin-of-sequence token in front."""


def as_turns(conversation: Conversation, answer: str | None, image_token: str) -> tuple[str, list[Turn]]:
    """Bring both spellings of a conversation to a system text and turns.

    Raises:
        ValueError: roles out of order, or an answer given twice; the message says which message.
    """
    if isinstance(conversation, str):
        return "", [(conversation, answer)]
    system, turns = "", list[Turn]()
    for index, message in enumerate(conversation):
        role, content = message.get("role"), _flatten(message.get("content", ""), image_token)
        if role == "system" and index == 0:
            system = content
        elif role == "user" and (not turns or turns[-1][1] is not None):
            turns.append((content, None))
        elif role == "assistant" and turns and turns[-1][1] is None:
            turns[-1] = (turns[-1][0], content)
        else:
            raise ValueError(
                f"message {index} has role {role!r}; after an optional system message, user and assistant alternate"
            )
    if not turns:
        raise ValueError("the conversation has no user message")
    if answer is not None:
        if turns[-1][1] is not None:
            raise ValueError("the conversation already ends with an answer; leave answers=None")
        turns[-1] = (turns[-1][0], answer)
    return system, turns


def _flatten(content: str | Sequence[Mapping[str, Any]], image_token: str) -> str:
    """Content parts -> text; a picture part becomes a placeholder."""
    if isinstance(content, str):
        return content
    pieces = []
    for part in content:
        kind = part.get("type")
        if kind not in ("text", "image", "image_url"):
            raise ValueError(f"content part of type {kind!r}; known: text, image, image_url")
        pieces.append(part["text"] if kind == "text" else image_token)
    return "".join(pieces)


def place_pictures(turns: Sequence[Turn], pictures: int, image_token: str) -> list[Turn]:
    """Check the placeholders of a conversation, or put them in front of the first question if there are none.

    Raises:
        ValueError: another number of placeholders than pictures, one inside an answer, or a question without words.
    """
    if any(answer and image_token in answer for _, answer in turns):
        raise ValueError(f"an answer contains the image placeholder {image_token}; only questions may")
    found = sum(question.count(image_token) for question, _ in turns)
    first, answer = turns[0]
    if not found and pictures:
        turns = [(image_token * pictures + ("\n" if first.strip() else "") + first, answer), *turns[1:]]
    elif found != pictures:
        raise ValueError(f"{found} {image_token} placeholders in the text, but {pictures} pictures were given")
    if any(not question.replace(image_token, "").strip() and answer is None for question, answer in turns):
        raise ValueError("the prompt is empty; ask something about the picture")
    return list(turns)


def render(system: str, turns: Sequence[Turn], config: PromptConfig, tokenizer: Any) -> list[Segment]:
    """A conversation as segments, in order.

    Raises:
        ValueError: the tokenizer has no chat template, or one that cannot be split into turns.
    """
    if config.format == "chat":
        return _render_chat(system, turns, config, tokenizer)
    segments = []
    for index, (question, answer) in enumerate(turns):
        before = (config.system + system) if index == 0 else ""
        segments.append(Segment(before + config.template.replace("{prompt}", question), opening=index == 0))
        if answer is not None:
            segments.append(Segment(config.answer_prefix + answer, learned=True, closed=True))
    return segments


def _render_chat(system: str, turns: Sequence[Turn], config: PromptConfig, tokenizer: Any) -> list[Segment]:
    """Ask the template for growing conversations; what each step adds is a segment."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("prompt format 'chat': the tokenizer has no chat template; use format='template'")
    parts = takes_parts(tokenizer, config.image_token)
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    segments: list[Segment] = []
    done = ""
    for question, answer in turns:
        content = _as_parts(question, config.image_token) if parts else question
        messages.append({"role": "user", "content": content})
        done = _grow(segments, done, _template(tokenizer, messages, generation=True), learned=False)
        if answer is not None:
            messages.append({"role": "assistant", "content": _as_parts(answer, "") if parts else answer})
            done = _grow(segments, done, _template(tokenizer, messages, generation=False), learned=True)
    return segments


def _grow(segments: list[Segment], done: str, text: str, *, learned: bool) -> str:
    if not text.startswith(done):
        raise ValueError(
            "the tokenizer's chat template rewrites earlier turns, so answers cannot be told from questions; use "
            "format='template'"
        )
    segments.append(Segment(text[len(done) :], learned=learned))
    return text


def _template(tokenizer: Any, messages: list[dict[str, Any]], *, generation: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation))


def _as_parts(text: str, image_token: str) -> list[dict[str, str]]:
    """Text with placeholders -> content parts."""
    pieces = text.split(image_token) if image_token else [text]
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(pieces):
        parts += [{"type": "image"}] if index else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return parts


def takes_parts(tokenizer: Any, image_token: str) -> bool:
    """Whether the chat template reads content parts (vision-language models) or plain strings (language models)."""
    from jinja2 import TemplateError

    probe = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "probe"}]}]
    try:
        text = _template(tokenizer, probe, generation=True)
    except (TemplateError, TypeError):  # the template joined a list to a string
        return False
    return image_token in text and "probe" in text and "'type'" not in text
