"""What may be said about a file: never its name. Warnings of the readers quote header values: they stay silent."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def alias(path: str | Path) -> str:
    """Stands for a file or folder in messages: file names carry patients' names. Same name, same alias.

    Example:
        >>> alias("scan.nii.gz") == alias("/data/scan.nii.gz"), "scan" in alias("scan.nii.gz")
        (True, False)
    """
    return hashlib.sha256(Path(path).name.encode()).hexdigest()[:8]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and log lines of pydicom and nibabel away: they quote values of the header."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel", "nibabel.global")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was
