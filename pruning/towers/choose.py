"""Which `PrunableTower` fits a module that somebody hands in."""

from __future__ import annotations

from typing import Any

from torch import nn

from mm.pruning.towers import qwen_vit, transformers_clip
from mm.pruning.towers.base import PrunableTower
from mm.pruning.towers.open_clip_vit import OpenClipTower
from mm.pruning.towers.timm_vit import TimmTower
from mm.vision import VisionTower
from mm.vision.tower import resolve_layer

QWEN_TYPES = ("qwen2_vl_vision", "qwen2_5_vl_vision")
SUPPORTED = "CLIP and SigLIP of transformers, plain ViTs of timm and open_clip, the towers of Qwen2-VL and Qwen2.5-VL"


def open_tower(module: nn.Module, layer: int | None = None, merge: str = "group") -> PrunableTower:
    """Open a vision encoder for pruning; nothing about it changes.

    Args:
        module: A vision transformer of a supported library, or an `mm.vision.VisionTower`.
        layer: Hidden state to read, counted as in Hugging Face's `hidden_states`; None takes the tower's own setting,
            and for bare modules -2 with a class token (LLaVA's choice) or -1 without.
        merge: Only for Qwen: see `QwenTower`.

    Raises:
        ValueError: not a vision encoder that can be pruned, or no such layer.
    """
    final_norm = False
    if isinstance(module, VisionTower):
        layer = module.config.layer if layer is None else layer
        final_norm = module.config.final_norm
        module = module.module
    # a dual encoder (CLIPModel, open_clip's CLIP) brings its vision part under one of these names
    inner = getattr(module, "vision_model", None) or getattr(module, "visual", None)
    if isinstance(inner, nn.Module) and not hasattr(module, "language_model"):
        module = inner
    kind = getattr(getattr(module, "config", None), "model_type", "")
    if kind in QWEN_TYPES or type(module).__name__.startswith(("Qwen2VisionTransformer", "Qwen2_5_VisionTransformer")):
        if layer not in (None, -1):
            raise ValueError(f"layer={layer}: the tower of Qwen-VL is read after its last block only")
        return qwen_vit.QwenTower(module, merge)
    wrapper, depth, has_cls = _find(module, kind)
    chosen = (-2 if has_cls else -1) if layer is None else layer
    return wrapper(module, resolve_layer(chosen, depth), final_norm)


def _find(module: Any, kind: str) -> tuple[Any, int, bool]:
    """Wrapper class, number of blocks and whether there is a class token."""
    if kind in transformers_clip.MODEL_TYPES and hasattr(module, "encoder"):
        return transformers_clip.TransformersTower, len(module.encoder.layers), kind == "clip_vision_model"
    if hasattr(module, "blocks") and hasattr(module, "num_prefix_tokens") and hasattr(module, "_pos_embed"):
        return TimmTower, len(module.blocks), module.cls_token is not None
    if hasattr(module, "transformer") and hasattr(module, "class_embedding"):
        return OpenClipTower, len(module.transformer.resblocks), True
    raise ValueError(f"{type(module).__name__} has no vision encoder that can be pruned; supported are {SUPPORTED}")
