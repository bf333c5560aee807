"""Tiny random towers of the three libraries, three blocks each, on pictures of 32 x 32 pixels."""

import pytest
import torch

from mm.vision import ImagePreprocessing, TowerConfig, VisionTower, build_tower

SMALL = ImagePreprocessing(size=32)
HF = {"patch_size": 8, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
TIMM = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
OPEN_CLIP = {"patch_size": 8, "width": 32, "layers": 3, "head_width": 8}

CONFIGS = {
    "timm": TowerConfig(library="timm", name="vit_tiny_patch16_224", options=TIMM, preprocessing=SMALL),
    "timm_registers": TowerConfig(
        library="timm", name="vit_small_patch14_reg4_dinov2", options=TIMM | {"init_values": 0.5}, preprocessing=SMALL
    ),
    "timm_siglip": TowerConfig(library="timm", name="vit_base_patch16_siglip_224", options=TIMM, preprocessing=SMALL),
    "open_clip": TowerConfig(library="open_clip", name="ViT-B-32", options=OPEN_CLIP, preprocessing=SMALL),
    "clip": TowerConfig(library="transformers", name="clip_vision_model", options=HF, preprocessing=SMALL),
    "siglip": TowerConfig(library="transformers", name="siglip_vision_model", options=HF, preprocessing=SMALL),
}


def redraw(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights large enough that a wrong layer or activation shows far above rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


@pytest.fixture
def make_tower():
    def make(kind: str, **changes) -> VisionTower:
        from dataclasses import replace

        tower = build_tower(replace(CONFIGS[kind], **changes))
        redraw(tower.module)
        return tower.eval()

    return make


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
