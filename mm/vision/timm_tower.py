"""Vision transformers of timm (ViT, CLIP, SigLIP, DINOv2, EVA, BEiT: everything with `blocks` and intermediates)."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from mm.vision.config import TowerConfig
from mm.vision.preprocessing import ImagePreprocessing
from mm.vision.tower import Blocks, VisionTower, as_pair


class TimmTower(VisionTower):
    """A timm vision transformer behind the tower interface."""

    def __init__(self, module: Any, config: TowerConfig) -> None:
        blocks = getattr(module, "blocks", None)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential) or not hasattr(module, "num_prefix_tokens"):
            raise ValueError(
                f"timm {config.name}: {type(module).__name__} is no plain vision transformer (needs `blocks`)"
            )
        super().__init__(module, config, len(blocks))
        self.width = int(module.embed_dim)
        self.patch_size = as_pair(module.patch_embed.patch_size)
        self.num_prefix = int(module.num_prefix_tokens)
        self.has_cls = getattr(module, "cls_token", None) is not None

    @staticmethod
    def blocks_of(module: Any) -> Blocks:
        return module.blocks

    def run(self, pixel_values: Tensor) -> Tensor:
        if self.num_blocks == 0:
            return self._embedding(pixel_values)
        (output,) = self.module.forward_intermediates(
            pixel_values,
            indices=[self.num_blocks - 1],
            return_prefix_tokens=True,
            norm=self.config.final_norm,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        if not isinstance(output, tuple):
            return output
        tokens, prefix = output
        return torch.cat([prefix, tokens], dim=1)

    def _embedding(self, pixel_values: Tensor) -> Tensor:
        """Input of block 0; timm has no public call that ends there, so it is caught on its way in."""
        caught: list[Tensor] = []
        hook = self.module.blocks[0].register_forward_pre_hook(lambda _module, args: caught.append(args[0]))
        try:
            self.module.forward_intermediates(
                pixel_values, indices=[0], stop_early=True, output_fmt="NLC", intermediates_only=True
            )
        finally:
            hook.remove()
        return self.module.norm(caught[0]) if self.config.final_norm else caught[0]


def build(config: TowerConfig, weights: str | None) -> nn.Module:
    """timm module for `config`; `weights`: None random, "pretrained" timm's own, or a local file."""
    import timm

    architecture = config.name.partition(".")[0]
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=4)
        raise ValueError(f"timm has no model {config.name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    for key, instead in (("img_size", "preprocessing.size"), ("act_layer", "activation")):
        if key in config.options:
            raise ValueError(f"timm option {key}: set {instead} instead, the tower takes it from there")
    options: dict[str, Any] = {"num_classes": 0, **config.options, "img_size": config.preprocessing.size}
    if config.activation is not None:
        options["act_layer"] = config.activation
    if weights not in (None, "pretrained"):
        options["pretrained_cfg_overlay"] = {"file": weights}
    return timm.create_model(config.name, pretrained=weights is not None, **options)


def guess_config(module: Any, layer: int) -> TowerConfig:
    """Config of an existing module, with the preprocessing that timm stores beside its weights."""
    import timm

    data = timm.data.resolve_model_data_config(module)
    size = as_pair(module.patch_embed.img_size)
    name = module.pretrained_cfg.get("architecture", type(module).__name__)
    crop_pct = data.get("crop_pct", 1.0)
    crop = crop_pct < 1 and size[0] == size[1]
    preprocessing = ImagePreprocessing(
        size=size[0] if size[0] == size[1] else size,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        interpolation=data["interpolation"],
        resize="squash" if data.get("crop_mode") == "squash" or not crop else "crop",
        short_side=int(size[0] / crop_pct) if crop and data.get("crop_mode") != "squash" else None,
    )
    return TowerConfig(library="timm", name=name, layer=layer, preprocessing=preprocessing)
