"""Names that stand for objects which are imported only when somebody asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from fnmatch import fnmatch
from importlib import import_module
from typing import Any


class Registry:
    """Exact names -> "module:attribute"; the module is imported when the entry is first asked for.

    Args:
        kind: What the names stand for; it appears in every message ("model", "tour page", ...).

    Example:
        >>> shapes = Registry("shape")
        >>> shapes.add("path", "pathlib:PurePosixPath")
        >>> shapes.get("path")("a", "b")
        PurePosixPath('a/b')
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._paths: dict[str, str] = {}
        self._about: dict[str, str] = {}

    def add(self, name: str, path: str, *, about: str = "") -> None:
        """Register `name`; `about` is one line for listings.

        Raises:
            ValueError: the name is taken, or `path` is not of the form "module:attribute".
        """
        if name in self._paths:
            raise ValueError(f"{self.kind} {name!r} is already registered as {self._paths[name]}")
        if path.count(":") != 1:
            raise ValueError(f"{self.kind} {name!r}: path must be 'module:attribute', got {path!r}")
        self._paths[name] = path
        self._about[name] = about

    def about(self, name: str) -> str:
        """The line that was registered with `name`, "" if there is none."""
        return self._about.get(name, "")

    def path(self, name: str) -> str:
        """The "module:attribute" behind `name`, without importing it.

        Raises:
            ValueError: no such name; the message suggests the nearest ones.
        """
        if name not in self._paths:
            near = get_close_matches(name, self._paths) or sorted(self._paths)
            hint = f"did you mean {', '.join(near[:5])}?" if near else "none is registered"
            raise ValueError(f"unknown {self.kind} {name!r}; {hint}")
        return self._paths[name]

    def get(self, name: str) -> Any:
        """Import and return the object behind `name`.

        Raises:
            ValueError: no such name; the message suggests the nearest ones.
        """
        module, attribute = self.path(name).split(":")
        return getattr(import_module(module), attribute)

    def names(self, pattern: str = "*") -> list[str]:
        """Registered names that match a shell pattern, sorted."""
        return sorted(name for name in self._paths if fnmatch(name, pattern))

    def in_order(self) -> list[str]:
        """All names in the order of registration, for listings that tell a story."""
        return list(self._paths)

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._paths))

    def __len__(self) -> int:
        return len(self._paths)
