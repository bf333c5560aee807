"""Making a tower: from a config (random or named weights) or around a module that exists already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

from torch import nn

from mm.vision import open_clip_tower, timm_tower, transformers_tower
from mm.vision.config import Library, TowerConfig
from mm.vision.preprocessing import ImagePreprocessing
from mm.vision.tower import VisionTower, check_grid

_LIBRARIES: dict[Library, tuple[Callable[[Any, TowerConfig], VisionTower], ModuleType]] = {
    "timm": (timm_tower.TimmTower, timm_tower),
    "open_clip": (open_clip_tower.OpenClipTower, open_clip_tower),
    "transformers": (transformers_tower.TransformersTower, transformers_tower),
}


def build_tower(config: TowerConfig, *, weights: str | None = None) -> VisionTower:
    """Build a tower.

    Args:
        config: Library, architecture, layer, preprocessing.
        weights: None: random weights, nothing is downloaded. Otherwise what the library understands: "pretrained" or
            a file (timm), a tag or a file (open_clip), a folder or a hub id (transformers).

    Raises:
        ValueError: unknown architecture or layer, or an option that would be ignored.

    Example:
        >>> sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        >>> config = TowerConfig(name="vit_tiny_patch16_224", options=sizes, preprocessing=ImagePreprocessing(size=32))
        >>> build_tower(config).grid
        (4, 4)
    """
    cls, library = _LIBRARIES[config.library]
    _refuse_known_mismatch(config, weights)
    return _checked(cls(library.build(config, weights), config))


def wrap_tower(
    module: nn.Module,
    layer: int = -2,
    *,
    final_norm: bool = False,
    preprocessing: ImagePreprocessing | None = None,
    config: TowerConfig | None = None,
) -> VisionTower:
    """Show an existing module as a tower; its weights are shared, not copied.

    Args:
        module: A vision transformer of timm, open_clip or transformers, or a whole CLIP model of the latter two.
        layer: Which hidden state is read, counted as in `TowerConfig.layer`.
        final_norm: Apply the module's own final norm to it.
        preprocessing: Default: what the library stores with the module.
        config: The full config instead of the three arguments above; needed to save a model around a resized timm or
            open_clip architecture, because those modules do not remember how they were made.

    Raises:
        ValueError: a module of none of the three libraries, or not a plain vision transformer.
    """
    module = _vision_part(module)
    name = _library_of(module)
    cls, library = _LIBRARIES[name]
    if config is None:
        config = replace(library.guess_config(module, layer), final_norm=final_norm)
        config = replace(config, preprocessing=preprocessing or config.preprocessing)
    elif config.library != name:
        raise ValueError(f"config says library={config.library!r}, the module is from {name}")
    return _checked(cls(module, config))


def _vision_part(module: nn.Module) -> nn.Module:
    """A CLIP-like model -> its picture half; open_clip's timm adapter -> the timm model inside."""
    for attribute in ("vision_model", "visual", "trunk"):
        inner = getattr(module, attribute, None)
        if isinstance(inner, nn.Module):
            module = inner
    return module


def _library_of(module: nn.Module) -> Library:
    origins = {cls.__module__.partition(".")[0] for cls in type(module).__mro__}
    for name in _LIBRARIES:
        if name in origins:
            return name
    raise ValueError(f"{type(module).__name__} is not from {', '.join(_LIBRARIES)}; build a tower from one of these")


def _checked(tower: VisionTower) -> VisionTower:
    if next(tower.module.parameters()).device.type != "meta":
        check_grid(tower)
    return tower


def _refuse_known_mismatch(config: TowerConfig, weights: str | None) -> None:
    """OpenAI's CLIP weights were trained with QuickGELU; architectures without it exist under almost the same name."""
    openai = "openai" in config.name.partition(".")[2] or weights == "openai"
    if weights is not None and openai and "quickgelu" not in config.name.lower() and config.activation != "quick_gelu":
        raise ValueError(
            f"{config.library} {config.name}: OpenAI's weights need QuickGELU; take the name with 'quickgelu' in it or "
            "set activation='quick_gelu'"
        )
