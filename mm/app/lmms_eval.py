"""Models of this toolkit in lmms-eval: `--model mm --model_args pretrained=NAME_OR_FOLDER`.

lmms-eval (github.com/EvolvingLMMs-Lab/lmms-eval) finds `manifest` through the entry point group `lmms_eval.models` of
the installed package. It is never a dependency of ours: its classes are only looked up when it asks for `Chat` or
`Simple`, and what can be done without it is in `mm.app.answering`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from mm.app.answering import Request, from_context, from_messages, load_answerer

NAME = "mm"
"""What `--model` is called."""


def _library(module: str) -> ModuleType:
    try:
        return import_module(f"lmms_eval.{module}")
    except ImportError as error:
        raise ImportError(
            f"the adapter needs lmms-eval with its module lmms_eval.{module}; install it beside this package in an "
            "environment of its own, see docs/lmms_eval.md"
        ) from error


def manifest() -> Any:
    """The entry point: which classes lmms-eval finds under the name `mm`.

    Raises:
        ImportError: lmms-eval is missing or too old for manifests.
    """
    here = __name__
    return _library("models.registry_v2").ModelManifest(
        model_id=NAME, chat_class_path=f"{here}.Chat", simple_class_path=f"{here}.Simple"
    )


@cache
def _classes() -> dict[str, type]:
    """`Chat` and `Simple`, made when lmms-eval asks for them: their base class is lmms-eval's."""
    base: Any = _library("api.model").lmms

    class Adapter(base):  # type: ignore[misc]
        """What both kinds of tasks share."""

        def __init__(
            self,
            pretrained: str = "lavi_tiny",
            device: str | None = None,
            dtype: str | None = None,
            batch_size: int | str = 1,
            max_batch_size: int | None = None,  # lmms-eval always passes it
        ) -> None:
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise ValueError("this adapter runs in one process; start lmms-eval without accelerate or torchrun")
            super().__init__()
            self.pretrained = pretrained
            self.answerer = load_answerer(pretrained, device=device, dtype=dtype, batch_size=batch_size)

        @property
        def batch_size(self) -> int:
            """Requests per batch."""
            return self.answerer.batch_size

        def _document(self, task: str, split: str, number: int) -> Any:
            return self.task_dict[task][split][number]

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Scores of given answers; arguments are (context, target, visual function, id, task, split)."""
            asked, targets = [], []
            for context, target, to_visual, number, task, split in (request.args for request in requests):
                document = self._document(task, split, number)
                asked.append(from_context(context, to_visual(document), {}))
                targets.append(target if isinstance(target, str) else target(document))
            return self.answerer.score(asked, targets)

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
            """Refused: tasks of several rounds decide the next question themselves."""
            raise NotImplementedError("tasks of several rounds are not supported by the adapter of this toolkit")

        def _remember(self, requests: Sequence[Any], asked: Sequence[Request], answers: Sequence[str]) -> None:
            for request, question, answer in zip(requests, asked, answers, strict=True):
                self.cache_hook.add_partial("generate_until", (str(request.args[0]), dict(question.options)), answer)

    class Simple(Adapter):
        """Older tasks: a text and a function that gives the pictures."""

        is_simple = True

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """Arguments are (context, options, visual function, id, task, split)."""
            asked = [
                from_context(context, to_visual(self._document(task, split, number)), options)
                for context, options, to_visual, number, task, split in (request.args for request in requests)
            ]
            answers = self.answerer.answer(asked)
            self._remember(requests, asked, answers)
            return answers

    class Chat(Adapter):
        """Tasks that give chat messages."""

        is_simple = False

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """Arguments end in (message function, options, id, task, split); versions differ in what comes before."""
            asked = []
            for request in requests:
                to_messages, options, number, task, split = request.args[-5:]
                asked.append(from_messages(to_messages(self._document(task, split, number)), options))
            answers = self.answerer.answer(asked)
            self._remember(requests, asked, answers)
            return answers

    for made in (Chat, Simple):
        made.__qualname__ = made.__name__
    return {"Chat": Chat, "Simple": Simple}


def __getattr__(name: str) -> Any:
    if name in ("Chat", "Simple"):
        return _classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
