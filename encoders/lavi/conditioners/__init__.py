"""Conditioners: from a text token and the pictures to the deltas of one norm. A new family is one file and one line."""

from __future__ import annotations

from torch import nn

from mm.encoders.lavi.conditioners.attention import AttentionConditioner
from mm.encoders.lavi.conditioners.base import BlockConditioner, SiteConditioner
from mm.encoders.lavi.conditioners.conv import ConvConditioner
from mm.encoders.lavi.conditioners.film import FilmConditioner
from mm.encoders.lavi.conditioners.mlp import MlpConditioner
from mm.encoders.lavi.config import LaviConfig, Site

__all__ = [
    "CONDITIONERS",
    "AttentionConditioner",
    "BlockConditioner",
    "Conditioners",
    "ConvConditioner",
    "FilmConditioner",
    "MlpConditioner",
    "SiteConditioner",
]

CONDITIONERS: dict[str, type[BlockConditioner]] = {
    "attention": AttentionConditioner,
    "mlp": MlpConditioner,
    "conv": ConvConditioner,
    "film": FilmConditioner,
}


class Conditioners(nn.Module):
    """The conditioners of all modulated blocks, under `layers.{block}`."""

    def __init__(self, config: LaviConfig, width: int, layers: tuple[int, ...], sites: tuple[Site, ...]) -> None:
        super().__init__()
        family = CONDITIONERS[config.conditioner]
        self.slot_wise = family.slot_wise
        self.layers = nn.ModuleDict({str(layer): family(config, width, sites) for layer in layers})

    def block(self, layer: int) -> BlockConditioner:
        """The conditioner of one block.

        Raises:
            KeyError: the block is not modulated.
        """
        return self.layers[str(layer)]  # type: ignore[return-value]
