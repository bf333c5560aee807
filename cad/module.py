"""Training of OpenECAD: next-token loss on programs."""

from __future__ import annotations

from mm.cad.manner import MAX_NEW_TOKENS
from mm.cad.presets import openecad_tiny
from mm.training.answers import AnswerModule
from mm.training.module import OptimizerConfig


class CadModule(AnswerModule):
    """Train a tiny OpenECAD from random weights.

    Args:
        width: Channels of the language model.
        depth: Its blocks.
        tower_width: Channels of the vision tower.
        tower_depth: Its blocks.
        seed: Of the random weights.
        optimizer: Optimiser and schedule.
    """

    max_new_tokens = MAX_NEW_TOKENS

    def __init__(
        self,
        width: int = 128,
        depth: int = 3,
        tower_width: int = 128,
        tower_depth: int = 6,
        seed: int = 0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        model = openecad_tiny(seed, width=width, depth=depth, tower_width=tower_width, tower_depth=tower_depth)
        super().__init__(model.train(), optimizer)
        self.visual_tokens_in_sequence = model.tokens_per_picture
