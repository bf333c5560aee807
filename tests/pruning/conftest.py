"""Tiny encoders for the pruning tests, all with weights wide enough that attention is far from uniform."""

from __future__ import annotations

from functools import cache
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


TEXT = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 127,
}
EYE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 4,
}
IMAGE, VIDEO, VISION_START, VISION_END = 100, 101, 102, 103
PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96]]


def llava_vlm(text: str = "llama", **options) -> nn.Module:
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig, Qwen3Config

    kinds = {"llama": LlamaConfig, "qwen3": Qwen3Config, "mistral": MistralConfig}
    extra = {"head_dim": 8} if text != "llama" else {}
    extra |= {"sliding_window": None} if text == "mistral" else {}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**EYE),
        text_config=kinds[text](**TEXT, **extra),
        image_token_index=IMAGE,
        **options,
    )
    return widen(LlavaForConditionalGeneration(config), std=0.2)


def next_vlm() -> nn.Module:
    from transformers import LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**EYE),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    return widen(LlavaNextForConditionalGeneration(config), std=0.2)


def onevision_vlm() -> nn.Module:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**EYE, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-1,
    )
    return widen(LlavaOnevisionForConditionalGeneration(config), std=0.2)


def qwen_vlm(version: str = "2.5") -> nn.Module:
    import transformers

    ids = {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
    }
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {**TEXT, "rope_parameters": rope, "tie_word_embeddings": False}
    tower = qwen_tower(version).config.to_dict()
    if version == "2":
        tower["hidden_size"] = 32
        config = transformers.Qwen2VLConfig(text_config=text, vision_config=tower, **ids)
        model = transformers.Qwen2VLForConditionalGeneration(config)
    else:
        tower["out_hidden_size"] = 32
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower, **ids)
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    return widen(model, std=0.2)


def prompts(counts: list[list[int]], pad: str = "left", texts: int = 5, seed: int = 4) -> dict[str, torch.Tensor]:
    """Ids and mask of prompts; `counts` lists the visual tokens of the pictures in each, with text around them."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for row in counts:
        ids = [1]
        for count in row:
            ids += [*torch.randint(3, 90, (2,), generator=generator).tolist(), *[IMAGE] * count]
        rows.append(ids + torch.randint(3, 90, (texts + len(rows),), generator=generator).tolist())
    longest = max(map(len, rows))
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(rows):
        where = slice(longest - len(ids), None) if pad == "left" else slice(0, len(ids))
        input_ids[row, where] = torch.tensor(ids)
        mask[row, where] = 1
    return {"input_ids": input_ids, "attention_mask": mask}


def tiled_inputs(name: str, batch: int, pad: str) -> dict[str, torch.Tensor]:
    """A wide and a tall picture with padded borders, cut into the tiles that the library would cut."""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    core = cached_vlm(name).model
    options = {"vision_feature_select_strategy": "default"} if name == "next" else {}
    sizes = [(60, 40), (30, 64)][:batch]
    views = [image_size_to_num_patches(size, PINPOINTS, 32) for size in sizes]
    counts = []
    for size, count in zip(sizes, views, strict=True):
        tokens = [torch.zeros(count, 64, 1)]
        packed, _ = core.pack_image_features(tokens, torch.tensor([size]), image_newline=torch.zeros(1), **options)
        counts.append([len(packed[0])])
    pixels = pictures(5 * batch, 32).unflatten(0, (batch, 5))
    return {**prompts(counts, pad), "pixel_values": pixels[:, : max(views)], "image_sizes": torch.tensor(sizes)}


def vlm_inputs(name: str, batch: int = 2, pad: str = "left") -> dict[str, torch.Tensor]:
    """Inputs of a tiny vision-language model as its processor would give them."""
    if name in ("llava", "llava-qwen3", "llava-mistral"):
        return {**prompts([[64]] * batch, pad), "pixel_values": pictures(batch, 32)}
    if name in ("next", "onevision"):
        return tiled_inputs(name, batch, pad)
    grids = [(8, 12), (6, 6)][:batch]
    pixel_values, grid = qwen_patches(grids)
    inputs = prompts([[h * w // 4] for h, w in grids], pad)
    types = (inputs["input_ids"] == IMAGE).int()
    return {**inputs, "pixel_values": pixel_values, "image_grid_thw": grid, "mm_token_type_ids": types}


def vlm(name: str) -> nn.Module:
    """A tiny random vision-language model of transformers."""
    makers = {
        "llava": llava_vlm,
        "llava-qwen3": lambda: llava_vlm("qwen3"),
        "llava-mistral": lambda: llava_vlm("mistral"),
        "next": next_vlm,
        "onevision": onevision_vlm,
        "qwen2": lambda: qwen_vlm("2"),
        "qwen2.5": qwen_vlm,
    }
    return makers[name]()


@cache
def cached_vlm(name: str) -> nn.Module:
    """One model per name for the whole session; tests that change weights make their own."""
    return vlm(name)


VLMS = ("llava", "llava-qwen3", "llava-mistral", "next", "onevision", "qwen2", "qwen2.5")


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
        prompts=prompts,
        vlm=cached_vlm,
        llava=llava_vlm,
        inputs=vlm_inputs,
        image=IMAGE,
    )
