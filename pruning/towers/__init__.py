"""Vision encoders of four libraries, opened block by block."""

from mm.pruning.towers.base import PrunableTower, Stream
from mm.pruning.towers.choose import open_tower

__all__ = ["PrunableTower", "Stream", "open_tower"]
