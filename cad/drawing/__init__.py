"""Pictures of parts: our own rasteriser, and exact hidden-line drawings."""

from mm.cad.drawing.picture import render, silhouette

__all__ = ["render", "silhouette"]
