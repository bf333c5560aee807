"""Benchmark requests answered in batches, by any model that has `prepare`, `generate` and `forward`.

What evaluation harnesses ask for is the same everywhere: a text per question, or the probability of a given answer.
Dims: B requests of a batch, L tokens, V vocabulary.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)
PLACEHOLDER = "<image>"
"""Where a picture stands in a plain text."""
PASSED_ON = ("max_new_tokens", "num_beams")
SAMPLING = ("temperature", "top_p", "top_k")
DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True)
class Request:
    """A question with its pictures."""

    messages: list[dict[str, Any]]
    """Chat messages; a picture is a part `{"type": "image"}`."""
    images: list[Any] = field(default_factory=list)
    """Pictures in the order of those parts."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Generation options as tasks write them."""


def from_messages(messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> Request:
    """Chat messages of a task: parts are `text` or `image`, the picture stands under `url`.

    Pictures in front of the first question are placed by the model's processor, as in its training.

    Raises:
        ValueError: a part of another kind (video, audio).
    """
    images: list[Any] = []
    plain: list[dict[str, Any]] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        images += [part["url"] for part in parts if part["type"] == "image"]
        other = sorted({part["type"] for part in parts} - {"text", "image"})
        if other:
            raise ValueError(f"the task has {', '.join(other)} input; this adapter reads text and images")
        kept = [{"type": "image"} if part["type"] == "image" else dict(part) for part in parts]
        plain.append({"role": message["role"], "content": kept})
    return Request(_without_leading_pictures(plain, len(images)), images, options)


def from_context(context: str, visuals: Sequence[Any] | None, options: Mapping[str, Any]) -> Request:
    """Text and pictures of an older task; `<image>` marks their places, if the task cares.

    Raises:
        ValueError: a visual that is a path (a video) and not a picture.
    """
    images = list(visuals or [])
    if any(isinstance(image, str) for image in images):
        raise ValueError("the task gives paths (videos or audio); this adapter reads pictures")
    parts: list[dict[str, Any]] = []
    for index, piece in enumerate(context.split(PLACEHOLDER)):
        parts += [{"type": "image"}] if index else []
        parts += [{"type": "text", "text": piece}] if piece else []
    return Request([{"role": "user", "content": parts}], images, options)


def _without_leading_pictures(messages: list[dict[str, Any]], pictures: int) -> list[dict[str, Any]]:
    """The messages without picture parts, if all of them stand in front of the first question."""
    first: dict[str, Any] = next((message for message in messages if message["role"] == "user"), {"content": []})
    leading = [part["type"] for part in first["content"][:pictures]]
    if leading != ["image"] * pictures:
        return messages
    text = {**first, "content": first["content"][pictures:]}
    return [text if message is first else message for message in messages]


def generation_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Options for `generate`, and the texts at which an answer ends.

    Greedy unless the task samples (`do_sample`, or a temperature above 0); an option that would have no effect is
    logged.

    Raises:
        ValueError: `until` is neither a text nor a list of texts.
    """
    until = options.get("until") or []
    stops = [until] if isinstance(until, str) else until
    if not isinstance(stops, list | tuple) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError(f"until must be a text or a list of texts, got {until!r}")
    unused = sorted(set(options) - {*PASSED_ON, *SAMPLING, "do_sample", "until"})
    if unused:
        logger.warning("generation options without effect here: %s", ", ".join(unused))
    chosen = {"max_new_tokens": DEFAULT_NEW_TOKENS}
    chosen |= {name: options[name] for name in PASSED_ON if options.get(name) is not None}
    temperature = options.get("temperature")
    sampled = options.get("do_sample", bool(temperature)) and temperature != 0
    if sampled:
        chosen |= {name: options[name] for name in SAMPLING if options.get(name) is not None}
    return chosen | {"do_sample": bool(sampled)}, [stop for stop in stops if stop]


def cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of `stops`.

    Example:
        >>> cut("seven. Next", [".", "x"])
        'seven'
    """
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))].strip()


# --- answering -----------------------------------------------------------------------------------------------------


class Answerer:
    """Requests in, texts or scores out, with any model that has `prepare`, `generate` and `forward`.

    Args:
        model: A `LaviModel`, a `VisionLanguageModel`, or a Hugging Face model behind the same methods.
        batch_size: Requests per batch; answers do not depend on it.

    Raises:
        ValueError: the model does not answer questions, or an impossible batch size.
    """

    def __init__(self, model: Any, batch_size: int = 1) -> None:
        if not (hasattr(model, "prepare") and hasattr(model, "generate")):
            raise ValueError(f"a {type(model).__name__} does not answer questions about pictures")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model = model.eval()
        self.batch_size = batch_size

    def answer(self, requests: Sequence[Request]) -> list[str]:
        """One text per request, in their order. Requests with other options never share a batch."""
        answers: dict[int, str] = {}
        keys = [json.dumps(dict(request.options), sort_keys=True, default=str) for request in requests]
        for numbers in self._batches(keys):
            chunk = [requests[number] for number in numbers]
            options, stops = generation_options(chunk[0].options)
            batch = self.model.prepare([r.images for r in chunk], [r.messages for r in chunk], padding_side="left")
            texts = self._decode(self.model.generate(**batch, **options))
            answers |= {number: cut(text, stops) for number, text in zip(numbers, texts, strict=True)}
        return [answers[number] for number in range(len(requests))]

    def score(self, requests: Sequence[Request], targets: Sequence[str]) -> list[tuple[float, bool]]:
        """Log-probability of each target as the answer, and whether greedy decoding would give it.

        The sum runs over the target's tokens without the end mark behind them.
        """
        import torch

        found: list[tuple[float, bool]] = []
        for start in range(0, len(requests), self.batch_size):
            chunk = requests[start : start + self.batch_size]
            replies = list(targets[start : start + self.batch_size])
            images, messages = [r.images for r in chunk], [r.messages for r in chunk]
            batch = self.model.prepare(images, messages, replies, padding_side="right")
            labels = batch.pop("labels")
            with torch.inference_mode():
                logits = self.model(**batch).logits
            found += self._scores(logits, labels)
        return found

    def _scores(self, logits: Tensor, labels: Tensor) -> list[tuple[float, bool]]:
        target = labels[:, 1:]  # logits at i predict token i + 1
        counted = (target != -100) & (target != self._tokenizer.eos_token_id)
        predicted = logits[:, :-1].float().log_softmax(-1)  # (B, L - 1, V)
        chosen = predicted.gather(-1, target.clamp(min=0)[..., None])[..., 0]
        sums = (chosen * counted).sum(1).tolist()
        greedy = ((predicted.argmax(-1) == target) | ~counted).all(1).tolist()
        return list(zip(sums, greedy, strict=True))

    @property
    def _tokenizer(self) -> Any:
        return self.model.processor.tokenizer

    def _decode(self, ids: Tensor) -> list[str]:
        decode = getattr(self.model, "decode", None) or self.model.processor.decode
        texts: list[str] = decode(ids)
        return texts

    def _batches(self, keys: Sequence[str]) -> Iterator[list[int]]:
        """Numbers of the requests with equal keys, at most `batch_size` at a time."""
        groups: dict[str, list[int]] = {}
        for number, key in enumerate(keys):
            groups.setdefault(key, []).append(number)
        for numbers in groups.values():
            for start in range(0, len(numbers), self.batch_size):
                yield numbers[start : start + self.batch_size]


def load_answerer(
    pretrained: str, *, device: str | None = None, dtype: str | None = None, batch_size: int | str = 1
) -> Answerer:
    """Read a model and make it answer.

    Args:
        pretrained: A shipped name, a folder or a hub id, of this toolkit or of Hugging Face.
        device: Default: cuda if there is one.
        dtype: "bfloat16", "float16" or "float32"; default: float32.
        batch_size: Requests per batch.

    Raises:
        FileNotFoundError: nothing under that name.
        ValueError: an unknown dtype, or a model that does not answer questions.
    """
    import torch

    from mm.checkpoint import CONFIG_FILE, load, read_json, resolve
    from mm.vlm import VisionLanguageModel

    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    if dtype not in (None, "auto", *dtypes):
        raise ValueError(f"dtype must be one of {', '.join(dtypes)}, got {dtype!r}")
    if not str(batch_size).isdigit():
        raise ValueError(f"batch_size must be a number, got {batch_size!r}; sizes are not searched for")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = resolve(pretrained)
    ours = "model_class" in read_json(folder / CONFIG_FILE)
    read: Any = load if ours else VisionLanguageModel.from_pretrained
    return Answerer(read(folder, device=device, dtype=dtypes.get(dtype or "")), int(batch_size))
