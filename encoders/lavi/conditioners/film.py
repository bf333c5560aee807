"""FiLM control: one pair of deltas per picture for all tokens. Not LaVi; it is what LaVi must beat.

    z = W mean(V),   [dgamma; dbeta] = W_o z

Without a part that depends on the token, many visual facts have to fit through one vector.

Source: the conditioning of Perez et al. 2018 (arXiv:1709.07871) applied to the same norms.
Dims: B context rows, M visual tokens, C width.
"""

from __future__ import annotations

from torch import Tensor

from mm.encoders.lavi.conditioners.base import BlockConditioner, Grid, Memory, SiteConditioner, linear
from mm.encoders.lavi.config import LaviConfig, Site


class FilmSite(SiteConditioner):
    """Passes the picture's vector on, whatever the token."""

    def read(self, tokens: Tensor, memory: Memory, mask: Tensor | None) -> Tensor:
        """(B, 1, C), the same for every token of a row."""
        return memory[0]


class FilmConditioner(BlockConditioner):
    """One vector per picture."""

    site_class = FilmSite
    slot_wise = False

    def __init__(self, config: LaviConfig, width: int, sites: tuple[Site, ...]) -> None:
        super().__init__(config, width, sites)
        self.mean_proj = linear(config.width, config.width)

    def prepare(self, tokens: Tensor, mask: Tensor | None, grid: Grid | None) -> Memory:
        """The projected mean of the real tokens, (B, 1, C)."""
        if mask is None:
            mean = tokens.mean(dim=1, keepdim=True)
        else:
            weight = mask.unsqueeze(-1).to(tokens.dtype)
            mean = (tokens * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)
        return (self.mean_proj(mean),)

    def slot_mask(self, mask: Tensor | None, grid: Grid | None) -> Tensor | None:
        """None: there is one slot."""
        return None

    def slot_ids(self, ids: Tensor | None, grid: Grid | None) -> Tensor | None:
        """None: the slot holds everything."""
        return None
