"""The projector: from the tower's channels to the language model's.

Source: LLaVA (Liu et al. 2023, arXiv:2304.08485, section 4.1: one matrix); LLaVA-1.5 (arXiv:2310.03744, section 3.2:
two matrices with a GELU between). State-dict names are those of the original release ("0", "2").
"""

from __future__ import annotations

from torch import nn

from mm.vlm.config import ProjectorKind


def build_projector(kind: ProjectorKind, vision_width: int, language_width: int, *, bias: bool = True) -> nn.Module:
    """A module (..., vision_width) -> (..., language_width) with keys "0.weight" and, for the MLP, "2.weight"."""
    if kind == "linear":
        return nn.Sequential(nn.Linear(vision_width, language_width, bias=bias))
    return nn.Sequential(
        nn.Linear(vision_width, language_width, bias=bias),
        nn.GELU(),
        nn.Linear(language_width, language_width, bias=bias),
    )
