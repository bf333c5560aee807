"""Pictures of parts: our own rasteriser, and exact hidden-line drawings."""

from mm.cad.drawing.hidden_lines import hidden_line_svg
from mm.cad.drawing.picture import render, silhouette

__all__ = ["hidden_line_svg", "render", "silhouette"]
