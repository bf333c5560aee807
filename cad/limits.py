"""How large a program may be. The text may come from a model or a stranger, so every size has a bound."""

from __future__ import annotations

MAX_BYTES = 256 * 1024
"""Length of the text, UTF-8 bytes."""
MAX_STATEMENT = 4096
"""Length of one statement, characters; the longest of the published converter has about 200."""
MAX_DEPTH = 8
"""Nested brackets."""
MAX_STATEMENTS = 5_000
MAX_EXTRUDES = 64
MAX_CURVES = 2_000
MAX_VALUE = 1e6
"""Largest magnitude of any number: 1 km in millimetres."""
