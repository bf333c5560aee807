"""Optional libraries: imported where used, with an error that names the extra to install."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: Import name, for instance "av".
        extra: Name of the optional dependency group in pyproject.toml.
        purpose: What needs it, as the subject of the error message ("Reading a video").

    Raises:
        ImportError: the library is missing; the message says which extra holds it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise ImportError(
            f"{purpose} needs {library}: pip install 'mm[{extra}]' (in a clone: pip install -e '.[{extra}]')"
        ) from error
