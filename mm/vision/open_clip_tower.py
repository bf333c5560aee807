"""Vision transformers of open_clip, with QuickGELU where the weights were trained with it."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from mm.vision.config import TowerConfig
from mm.vision.preprocessing import CLIP_MEAN, CLIP_STD, ImagePreprocessing
from mm.vision.tower import Blocks, VisionTower, as_pair


class OpenClipTower(VisionTower):
    """An open_clip `VisionTransformer` behind the tower interface."""

    num_prefix = 1
    has_cls = True

    def __init__(self, module: Any, config: TowerConfig) -> None:
        if not hasattr(module, "transformer") or not hasattr(module, "forward_intermediates"):
            raise ValueError(f"open_clip {config.name}: {type(module).__name__} is no plain vision transformer")
        super().__init__(module, config, len(self.blocks_of(module)))
        self.width = int(module.class_embedding.shape[-1])
        self.patch_size = as_pair(module.patch_size)

    @staticmethod
    def blocks_of(module: Any) -> Blocks:
        return module.transformer.resblocks

    def run(self, pixel_values: Tensor) -> Tensor:
        if self.num_blocks == 0:
            hidden = self.module._embeds(pixel_values)
            return self.module.ln_post(hidden) if self.config.final_norm else hidden
        output = self.module.forward_intermediates(
            pixel_values,
            indices=[self.num_blocks - 1],
            stop_early=True,
            normalize_intermediates=self.config.final_norm,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        return torch.cat([output["image_intermediates_prefix"][0], output["image_intermediates"][0]], dim=1)


def build(config: TowerConfig, weights: str | None) -> nn.Module:
    """open_clip vision transformer; `weights`: None random, one of open_clip's tags, or a local file."""
    import open_clip

    known = open_clip.get_model_config(config.name)
    if known is None:
        near = get_close_matches(config.name, open_clip.list_models(), n=4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ValueError(f"open_clip has no model {config.name!r}{hint}")
    if weights is not None:
        if config.options:
            raise ValueError(
                f"open_clip weights {weights!r} belong to {config.name} as it is, not with {config.options}"
            )
        return open_clip.create_model(
            config.name, pretrained=weights, force_image_size=config.preprocessing.size
        ).visual
    if "image_size" in config.options:
        raise ValueError("open_clip option image_size: set preprocessing.size instead, the tower takes it from there")
    vision: dict[str, Any] = {**known["vision_cfg"], **config.options, "image_size": config.preprocessing.size}
    if config.activation == "gelu_tanh":
        vision["act_kwargs"] = {"approximate": "tanh"}
    quick_gelu = config.activation == "quick_gelu" if config.activation else known.get("quick_gelu", False)
    from open_clip.model import _build_vision_tower

    return _build_vision_tower(known["embed_dim"], vision, quick_gelu=quick_gelu)


def guess_config(module: Any, layer: int) -> TowerConfig:
    """Config of an existing module; open_clip leaves mean and std on modules it has made."""
    size = as_pair(module.image_size)
    preprocessing = ImagePreprocessing(
        size=size[0] if size[0] == size[1] else size,
        mean=tuple(getattr(module, "image_mean", None) or CLIP_MEAN),
        std=tuple(getattr(module, "image_std", None) or CLIP_STD),
        resize="crop",
    )
    return TowerConfig(library="open_clip", name=type(module).__name__, layer=layer, preprocessing=preprocessing)
