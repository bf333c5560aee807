"""Models that the app keeps in memory, each used by one request at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from typing import Any

from mm.checkpoint import load, shipped_names


class Shelf:
    """Loaded models by name; the one that was not used for longest goes first.

    A method that changes a model while it runs (pruning does) must never meet a second request in the same model, so a
    model is lent out under its own lock.

    Args:
        capacity: Models kept.
    """

    def __init__(self, capacity: int = 6) -> None:
        self.capacity = capacity
        self._allowed: frozenset[str] | None = None
        self._places: OrderedDict[tuple[str, Callable[[str], Any]], _Place] = OrderedDict()
        self._lock = Lock()

    def restrict(self, names: list[str]) -> None:
        """From now on only shipped models and `names`: visitors must not open any folder of this machine."""
        self._allowed = frozenset([*shipped_names(), *names])

    @contextmanager
    def lent(self, name: str | None, loader: Callable[[str], Any] = load) -> Iterator[Any]:
        """The model `name`, loaded if needed, for this block alone.

        Args:
            name: A shipped name, a folder or a hub id.
            loader: Reads it; `mm.load` by default, `mm.vlm.open_model` takes Hugging Face folders, too. Give the same
                function every time.

        Raises:
            ValueError: no name, or the app may not open it.
            FileNotFoundError: nothing under that name.
        """
        name = (name or "").strip()
        if not name:
            raise ValueError("No model is named: choose one of the list, or type a folder or a hub id.")
        if self._allowed is not None and name not in self._allowed:
            raise ValueError(
                f"{name}: this app is open to others and loads {', '.join(sorted(self._allowed))} only; whoever runs "
                "it can add names with --allow"
            )
        place = self._place((name, loader))
        with place.lock:
            if place.model is None:
                place.model = loader(name)
            yield place.model

    def _place(self, key: tuple[str, Callable[[str], Any]]) -> _Place:
        with self._lock:
            place = self._places.setdefault(key, _Place())
            self._places.move_to_end(key)
            while len(self._places) > self.capacity:
                self._places.popitem(last=False)
            return place


class _Place:
    """A model and the lock of whoever uses it."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.model: Any = None


shelf = Shelf()
"""The one of this process."""
