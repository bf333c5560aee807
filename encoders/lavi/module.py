"""Training of a LaVi model: visual projector and conditioners on a frozen (or LoRA-adapted) language model."""

from __future__ import annotations

from typing import Any, Literal

from mm.encoders.lavi.model import LaviModel
from mm.training.answers import AnswerModule
from mm.training.module import OptimizerConfig
from mm.training.parts import load_language, load_tower
from mm.vision import TowerConfig
from mm.vlm import PromptConfig


class LaviModule(AnswerModule):
    """Train a `LaviModel`.

    Args:
        language: Weights of the language model: a shipped name, a folder or a hub id.
        tower: Weights of the vision tower, see `mm.training.parts.load_tower`.
        tower_config: Architecture, for weights that are not a folder of ours.
        lavi: Fields of `LaviConfig`; width and layer of the features come from the tower.
        picture_ids: What several pictures of a sample are, see `LaviModelConfig`.
        train: adapter (stage 1): projector and conditioners; adapter+language (stage 2): the language model as well,
            through LoRA if `lora_rank` is above 0.
        lora_rank: Rank of the LoRA matrices in stage 2; 0 trains the language model itself.
        prompt: From a question to a prompt.
        seed: Draws the weights of the visual path.
        optimizer: Optimiser and schedule.
    """

    model: LaviModel
    visual_tokens_in_sequence = 0

    def __init__(
        self,
        language: str = "tiny_lm",
        tower: str = "tiny_vit",
        tower_config: TowerConfig | None = None,
        lavi: dict[str, Any] | None = None,
        picture_ids: Literal["none", "image", "tile", "frame"] = "image",
        train: Literal["adapter", "adapter+language"] = "adapter",
        lora_rank: int = 0,
        prompt: PromptConfig | None = None,
        seed: int = 0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        if train not in ("adapter", "adapter+language"):
            raise ValueError(f"train must be 'adapter' or 'adapter+language', got {train!r}")
        if lora_rank and train == "adapter":
            raise ValueError("lora_rank has no effect with train='adapter'; use train='adapter+language'")
        model = LaviModel.from_parts(
            load_tower(tower, tower_config),
            load_language(language),
            lavi=lavi,
            prompt=prompt,
            seed=seed,
            picture_ids=picture_ids,
        )
        model.freeze(tower=True, language=train == "adapter" or lora_rank > 0)
        if lora_rank:
            model.backbone.lora(rank=lora_rank)
        super().__init__(model.train(), optimizer)
