"""Tiny encoders for the pruning tests, all with weights wide enough that attention is far from uniform."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel


@torch.no_grad()
def widen(module: nn.Module, seed: int = 0, std: float = 0.3) -> nn.Module:
    """Draw every weight from a local generator; norm weights stay around one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        centre = 1.0 if parameter.ndim == 1 and "norm" in name and name.endswith("weight") else 0.0
        parameter.copy_(centre + std * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def pictures(batch: int = 2, size: int = 48, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def clip_tower(seed: int = 0, **sizes) -> CLIPVisionModel:
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 4,
    }
    return widen(CLIPVisionModel(CLIPVisionConfig(**{**shape, **sizes})), seed)


def siglip_tower(seed: int = 0, **sizes) -> SiglipVisionModel:
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 48,
        "patch_size": 4,
    }
    return widen(SiglipVisionModel(SiglipVisionConfig(**{**shape, **sizes, "vision_use_head": False})), seed)


def timm_tower(name: str = "vit_tiny_patch16_224", **options) -> nn.Module:
    import timm

    shape = {"img_size": 48, "patch_size": 4, "embed_dim": 32, "depth": 4, "num_heads": 4, "num_classes": 0}
    return widen(timm.create_model(name, **{**shape, **options}))


def open_clip_tower() -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return widen(
        VisionTransformer(
            image_size=48, patch_size=4, width=32, layers=4, heads=4, mlp_ratio=2.0, output_dim=16, ls_init_value=None
        )
    )


def qwen_tower(version: str = "2.5", seed: int = 0) -> nn.Module:
    if version == "2":
        from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig as Config
        from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel as Tower

        config = Config(depth=4, embed_dim=32, hidden_size=24, num_heads=4, mlp_ratio=2, patch_size=4)
    else:
        from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig as Config
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel as Tower

        config = Config(
            depth=4, hidden_size=32, out_hidden_size=24, num_heads=4, intermediate_size=48, patch_size=4,
            window_size=16, fullatt_block_indexes=[1, 3],
        )  # fmt: skip
    return widen(Tower._from_config(config), seed)


def qwen_patches(grids: list[tuple[int, int]], patch: int = 4, seed: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Packed patches and the grid table of still pictures."""
    count = sum(h * w for h, w in grids)
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3 * 2 * patch * patch, generator=generator), torch.tensor([[1, h, w] for h, w in grids])


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The makers above, under short names."""
    return SimpleNamespace(
        widen=widen,
        pictures=pictures,
        clip=clip_tower,
        siglip=siglip_tower,
        timm=timm_tower,
        dinov2=lambda: timm_tower("vit_small_patch14_reg4_dinov2", init_values=0.5),
        timm_siglip=lambda: timm_tower("vit_base_patch16_siglip_224", global_pool=""),
        open_clip=open_clip_tower,
        qwen=qwen_tower,
        qwen_patches=qwen_patches,
    )
