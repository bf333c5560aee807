"""Training of the concatenation host: a projector between a tower and a language model (LLaVA, arXiv:2304.08485)."""

from __future__ import annotations

from typing import Literal

import torch

from mm.training.answers import AnswerModule
from mm.training.module import OptimizerConfig
from mm.training.parts import load_language, load_tower
from mm.vision import TowerConfig
from mm.vlm import PromptConfig, VisionLanguageModel
from mm.vlm.config import ProjectorKind


class HostModule(AnswerModule):
    """Train a `VisionLanguageModel`.

    Args:
        language: Weights of the language model: a shipped name, a folder or a hub id.
        tower: Weights of the vision tower, see `mm.training.parts.load_tower`.
        tower_config: Architecture, for weights that are not a folder of ours.
        projector: Kind of projector; it starts random.
        projector_scale: Factor on the last projector matrix at the start, so that visual tokens are about as long as
            word embeddings.
        train: What learns: the projector alone (LLaVA's first stage), or the language model as well.
        prompt: From a question to a prompt.
        seed: Of the projector's start.
        optimizer: Optimiser and schedule.
    """

    model: VisionLanguageModel

    def __init__(
        self,
        language: str = "tiny_lm",
        tower: str = "tiny_vit",
        tower_config: TowerConfig | None = None,
        projector: ProjectorKind = "mlp2x_gelu",
        projector_scale: float = 1.0,
        train: Literal["projector", "projector+language"] = "projector",
        prompt: PromptConfig | None = None,
        seed: int = 0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        if train not in ("projector", "projector+language"):
            raise ValueError(f"train must be 'projector' or 'projector+language', got {train!r}")
        eye, words = load_tower(tower, tower_config), load_language(language)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = VisionLanguageModel.from_parts(eye, words, prompt=prompt, projector=projector)
        with torch.no_grad():
            list(model.projector.parameters())[-2].mul_(projector_scale)
        super().__init__(model.freeze(tower=True, language=train == "projector").train(), optimizer)
        self.visual_tokens_in_sequence = model.tokens_per_picture
