"""How a piece of kernel work ended, and the error that says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal[
    "ok",
    "open-loop",
    "self-intersecting-loop",
    "crossing-loops",
    "zero-area",
    "bad-arc",
    "zero-thickness",
    "empty-result",
    "kernel-error",
    "unwritable-output",
    "timeout",
    "cpu-limit",
    "out-of-memory",
    "crashed",
    "not-installed",
]
"""`ok`; then what is wrong with the part; then what became of the process that worked on it."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one piece of kernel work may use; the child process is killed beyond it."""

    seconds: float = 30.0
    """Wall-clock time."""
    cpu_seconds: float = 30.0
    """Processor time; rounded up to whole seconds."""
    memory_mb: int = 4096
    """Address space on top of what the loaded libraries take, MiB."""

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.cpu_seconds <= 0 or self.memory_mb <= 0:
            raise ValueError(f"limits must be above 0, got {self}")


@dataclass(frozen=True)
class Outcome:
    """Result of one isolated piece of work."""

    status: Status
    """How it ended."""
    message: str = ""
    """A sentence for people, "" when ok."""
    result: dict[str, Any] = field(default_factory=dict)
    """What the work returned."""
    seconds: float = 0.0
    """Wall-clock time it took."""


class BuildError(ValueError):
    """A program that has no solid, or whose evaluation did not end.

    Args:
        status: Machine-readable reason.
        message: A sentence with the place, what was found and how to mend it.
        feature: Index of the extrude concerned, if it is known.
    """

    def __init__(self, status: Status, message: str, *, feature: int | None = None) -> None:
        where = "" if feature is None else f"extrude {feature}: "
        super().__init__(f"{where}{message} [{status}]")
        self.status = status
        self.feature = feature
