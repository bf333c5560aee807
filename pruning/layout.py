"""How pictures reach a language model."""

from typing import Literal

Layout = Literal["plain", "tiled", "native"]
"""One view per picture ("plain"), an overview and tiles ("tiled"), or any size with positions to match ("native")."""
