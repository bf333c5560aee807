"""How pictures reach a language model."""

from typing import Literal

Layout = Literal["plain", "tiled", "native"]
""""plain": one fixed-size view per picture; "tiled": an overview and tiles; "native": any size, multimodal positions."""
