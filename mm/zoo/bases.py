"""The two parts that demonstrations start from, as model folders of their own: a language model and a vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mm.backbone import LanguageBackbone
from mm.checkpoint import Pretrained
from mm.vision import TowerConfig, VisionTower, build_tower
from mm.vlm.language import build_language, language_config, read_tokenizer
from mm.zoo.presets import tiny_language, tiny_tower, tiny_tower_256


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """A language model."""

    language: dict[str, Any]
    """Hugging Face config, `model_type` included."""


class LanguageBase(Pretrained, nn.Module):
    """A causal language model with its tokenizer.

    Args:
        config: Architecture.
        backbone: Used instead of a random one.
        tokenizer: Travels with the weights.
    """

    config_class = LanguageConfig
    config: LanguageConfig

    def __init__(
        self, config: LanguageConfig, *, backbone: LanguageBackbone | None = None, tokenizer: Any = None
    ) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone if backbone is not None else build_language(config.language)
        if tokenizer is not None:
            self.backbone.tokenizer = tokenizer

    @classmethod
    def around(cls, backbone: LanguageBackbone) -> LanguageBase:
        """A base that shares the modules of `backbone`."""
        return cls(LanguageConfig(language=language_config(backbone)), backbone=backbone)

    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        """The Hugging Face forward pass."""
        return self.backbone(input_ids, **options)

    def save_extras(self, folder: Path) -> None:
        if self.backbone.tokenizer is not None:
            self.backbone.tokenizer.save_pretrained(folder)

    @classmethod
    def from_saved(cls, config: LanguageConfig, folder: Path) -> LanguageBase:  # type: ignore[override]
        return cls(config, tokenizer=read_tokenizer(folder))


class TowerBase(Pretrained, nn.Module):
    """A vision tower.

    Args:
        config: Architecture and preprocessing.
        tower: Used instead of a random one.
    """

    config_class = TowerConfig
    config: TowerConfig

    def __init__(self, config: TowerConfig, *, tower: VisionTower | None = None) -> None:
        super().__init__()
        self.tower = tower if tower is not None else build_tower(config)
        self.config = self.tower.config

    def forward(self, pixel_values: Tensor) -> Any:
        """`VisionFeatures` of preprocessed pictures (B, 3, H, W)."""
        return self.tower(pixel_values)

    def preprocessing(self) -> dict[str, Any]:
        return self.tower.preprocessing.to_dict()


def tiny_lm(seed: int = 0, **sizes: Any) -> LanguageBase:
    """Preset: the tiny language model with random weights."""
    return LanguageBase.around(tiny_language(seed, **sizes)).eval()


def tiny_vit(seed: int = 0, **options: Any) -> TowerBase:
    """Preset: the tiny vision tower with random weights."""
    tower = tiny_tower(seed, **options)
    return TowerBase(tower.config, tower=tower).eval()


def tiny_vit_256(seed: int = 0, **options: Any) -> TowerBase:
    """Preset: the tiny vision tower for 256 patches with random weights."""
    tower = tiny_tower_256(seed, **options)
    return TowerBase(tower.config, tower=tower).eval()
