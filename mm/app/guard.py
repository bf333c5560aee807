"""Between a function and the browser: errors become a sentence, never a trace; long work reports progress."""

from __future__ import annotations

import html
import inspect
import logging
import re
import tempfile
from collections.abc import Callable
from functools import wraps
from typing import Any

from mm.app.ui import gradio
from mm.command import one_line

logger = logging.getLogger(__name__)

UNEXPECTED = "Something went wrong inside the program; its log says what. The inputs may be fine."
"""What the browser shows of an error that is not the user's."""


def quiet(share: float, desc: str = "") -> None:
    """The `progress` of a function that nobody watches.

    Args:
        share: Done so far, 0 to 1.
        desc: What is being done.
    """


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as an event handler of Gradio.

    Wrong input (`ValueError`, `OSError`, `ImportError`) reaches the browser as the sentence that the error carries; of
    everything else the browser gets one fixed sentence and the log the trace. A function with a parameter
    `progress=quiet` gets one that draws a bar: `progress(0.3, desc="reading")`.

    Raises:
        TypeError: a generator function; its body would run outside the guard.
    """
    if inspect.isgeneratorfunction(function):
        raise TypeError(f"{function.__name__} is a generator; return the result and report steps by `progress`")
    gr = gradio()

    @wraps(function)
    def handler(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except gr.Error:
            raise
        except (ValueError, OSError, ImportError) as error:
            logger.info("%s: %s", function.__name__, one_line(error))
            raise gr.Error(sentence(error), title="This did not work", print_exception=False) from None
        except Exception:
            logger.exception("%s failed", function.__name__)
            raise gr.Error(UNEXPECTED, title="Unexpected error", print_exception=False) from None

    handler.__signature__ = _with_gradio_progress(inspect.signature(function), gr)  # type: ignore[attr-defined]
    return handler


def sentence(error: BaseException) -> str:
    """Message of an error for the browser: one line, no markup, uploads by their own name.

    Example:
        >>> sentence(ValueError("<b>two</b>\\nlines"))
        '&lt;b&gt;two&lt;/b&gt; lines'
    """
    folder = re.escape(tempfile.gettempdir().rstrip("/"))
    return html.escape(re.sub(rf"{folder}/(?:[\w.-]+/)*", "", one_line(error)), quote=False)


def _with_gradio_progress(signature: inspect.Signature, gr: Any) -> inspect.Signature:
    """Gradio fills in a parameter whose default is its own progress object."""
    parameters = [
        parameter.replace(default=gr.Progress()) if parameter.default is quiet else parameter
        for parameter in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters)
