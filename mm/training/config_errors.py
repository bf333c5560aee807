"""From the nested reports of the configuration parser to one sentence: which key, in which file, and what was meant."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, get_args, get_type_hints

NOISE = re.compile(r"^(-\s*)?(Does not validate|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value)")
BAD_KEY = re.compile(r"option '([\w.]+)'", re.IGNORECASE)
FOREIGN = re.compile(r"Importing '(\w+)[^']*' is not allowed, denied by .* to allow it\.")
CLASS = re.compile(r"class_path '([\w.]+)'")


def sentence(report: str, known: Sequence[str] = ()) -> str:
    """The parser's report as one sentence, with the nearest accepted key if one was unknown.

    Args:
        report: Message of the parser, many lines.
        known: Names of all settings outside the model and data classes.

    Example:
        >>> sentence("Group 'trainer' does not accept option 'max_step'", known=["trainer.max_steps"])
        "Group 'trainer' does not accept option 'max_step'; did you mean 'max_steps'?"
    """
    lines = [line.strip() for line in report.splitlines() if line.strip() and not NOISE.match(line.strip())]
    text = " ".join(line.removeprefix("- ") for line in lines)
    text = re.sub(r'Parser key "([\w.]+)":', r"\1:", text)
    text = re.sub(r"Problem with given class_path '([\w.]+)':", r"\1:", text)
    text = FOREIGN.sub(r"not from this toolkit, Lightning or torch; if you trust it, add --allow \1", text)
    text = re.sub(r"<class '([\w.]+)'>", r"\1", text)
    bad = BAD_KEY.search(report)
    if bad:
        classes = CLASS.findall(report)
        near = nearest_key(bad[1], [*known, *(name for path in classes for name in setting_names(path))])
        text += f"; did you mean {near!r}?" if near else ""
    return text


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The accepted key that looks most like `key`, compared as a whole and by its last part."""
    short = {name.rsplit(".", 1)[-1] for name in known}
    pool = [name for name in known if "." in name] if "." in key else sorted(short)
    return next(iter(get_close_matches(key, pool, n=1)), None)


def setting_names(class_path: str) -> Iterator[str]:
    """Names of a class's constructor arguments and of the fields of the configs among them."""
    module, _, name = class_path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
        hints = get_type_hints(cls.__init__)
    except (ImportError, AttributeError, NameError, ValueError):
        return  # the class itself is what is wrong
    for argument in inspect.signature(cls.__init__).parameters:
        yield argument
        yield from _field_names(hints.get(argument))


def _field_names(hint: Any) -> Iterator[str]:
    for option in (hint, *get_args(hint)):
        if isinstance(option, type) and is_dataclass(option):
            for name, inner in get_type_hints(option).items():
                yield name
                yield from _field_names(inner)


def faulty_file(parse: Callable[[list[str]], Any], texts: Sequence[tuple[str, str]], report: str) -> str | None:
    """The first of several configuration files that alone, after those before it, gives this very report.

    Args:
        parse: Parses command-line words; raises an exception whose text is the report.
        texts: (file name, content) in the order given.
        report: What parsing everything gave.
    """
    words: list[str] = []
    for name, text in texts:
        words += [f"--config={text}"]
        try:
            parse(words)
        except Exception as error:
            if str(error) == report:
                return name
    return None
