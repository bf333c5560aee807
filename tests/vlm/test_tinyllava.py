"""TinyLLaVA folders made here: the key layout, the dropped first token, and Gemma's scaled picture tokens."""

import json
from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionModel, SiglipVisionModel

from mm.backbone import LanguageBackbone
from mm.vlm import VisionLanguageModel, build_projector

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION |= {"image_size": 16, "patch_size": 8}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 4, "vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class Folder:
    """A TinyLLaVA folder and the three parts that it was written from."""

    def __init__(self, path, redraw, *, vision="siglip_vision_model", language="phi", head=True) -> None:
        text: dict = TEXT | ({"head_dim": 8} if language == "gemma" else {})
        if language == "openelm":
            text = LanguageBackbone.tiny("openelm", depth=2).config.to_dict()
        cls = SiglipVisionModel if vision.startswith("siglip") else CLIPVisionModel
        self.tower = cls(AutoConfig.for_model(vision, **VISION)).eval()
        text["model_type"] = language
        self.language = AutoModelForCausalLM.from_config(AutoConfig.for_model(**text)).eval()
        self.connector = build_projector("mlp2x_gelu", 32, 32)
        for part in (self.tower, self.language, self.connector):
            redraw(part)
        self.tensors = {f"vision_tower._vision_tower.vision_model.{k}": v for k, v in self.tower.state_dict().items()}
        if not head:
            self.tensors = {k: v for k, v in self.tensors.items() if ".head." not in k}
        self.tensors |= {f"connector._connector.{k}": v for k, v in self.connector.state_dict().items()}
        self.tensors |= {f"language_model.{k}": v for k, v in self.language.state_dict().items()}
        if language in ("gemma", "openelm"):
            del self.tensors["language_model.lm_head.weight"]  # tied
        self.config = {
            "model_type": "tinyllava",
            "connector_type": "mlp2x_gelu",
            "image_token_index": -200,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "patch",
            "text_config": text,
            "vision_config": {"model_type": vision, **VISION},
        }
        self.path = path
        self.write(self.config, self.tensors)

    def write(self, config: Mapping, tensors: Mapping) -> None:
        (self.path / "config.json").write_text(json.dumps(config))
        save_file({k: v.clone() for k, v in tensors.items()}, self.path / "model.safetensors")

    @torch.no_grad()
    def logits(self, before: list[int], pixels: torch.Tensor, after: list[int], *, scale: float) -> torch.Tensor:
        """What TinyLLaVA computes, written down once more by hand."""
        hidden = self.tower(pixels, output_hidden_states=True).hidden_states[-2]
        visual = self.connector(hidden[:, 1:]) * scale
        words = self.language.get_input_embeddings()
        joined = torch.cat([words(torch.tensor([before])), visual, words(torch.tensor([after]))], dim=1)
        return self.language(inputs_embeds=joined).logits


@pytest.mark.parametrize(
    ("vision", "language", "visual_tokens", "scale"),
    [
        ("siglip_vision_model", "phi", 3, 1.0),
        ("clip_vision_model", "phi", 4, 1.0),
        ("siglip_vision_model", "gemma", 3, 32**0.5),
        ("clip_vision_model", "openelm", 4, 1.0),
    ],
)
@torch.no_grad()
def test_logits_equal_the_parts_joined_by_hand(tmp_path, redraw, vision, language, visual_tokens, scale):
    folder = Folder(tmp_path, redraw, vision=vision, language=language)
    model = VisionLanguageModel.from_pretrained(tmp_path)
    assert model.tokens_per_picture == visual_tokens
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before, after = [1, 5, 6], [7, 8]
    ids = torch.tensor([[*before, *[-200] * visual_tokens, *after]])
    expected = folder.logits(before, pixels, after, scale=scale)
    found = model(ids, pixel_values=pixels).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    again = VisionLanguageModel.from_pretrained(model.save_pretrained(tmp_path / "again"))
    assert torch.equal(again(ids, pixel_values=pixels).logits, found)


def test_file_without_the_unused_pooling_head_still_loads(tmp_path, redraw):
    Folder(tmp_path, redraw, head=False)
    assert not hasattr(VisionLanguageModel.from_pretrained(tmp_path).tower.module, "head")


def test_tokenizer_gets_the_placeholder(tmp_path, redraw, word_tokenizer, picture):
    Folder(tmp_path, redraw)
    word_tokenizer().save_pretrained(tmp_path)
    model = VisionLanguageModel.from_pretrained(tmp_path)
    batch = model.prepare(picture(0), "what is red ?", "five")
    assert batch["input_ids"].eq(model.config.image_token_id).sum() == 3
    assert torch.isfinite(model(**batch).loss)


def test_missing_connector_and_strange_config_are_named(tmp_path, redraw):
    folder = Folder(tmp_path, redraw)
    folder.write(folder.config, {k: v for k, v in folder.tensors.items() if not k.startswith("connector._connector.2")})
    with pytest.raises(ValueError, match=r"missing \(2\): projector\.2\.weight, projector\.2\.bias"):
        VisionLanguageModel.from_pretrained(tmp_path)
    for key, value, message in (
        ("connector_type", "resampler", "connector_type is 'resampler', supported: mlp2x_gelu, linear"),
        ("vision_config", {"model_type": "dinov2"}, "supported: clip_vision_model, siglip_vision_model"),
        ("text_config", None, "text_config with its model_type is missing"),
    ):
        folder.write(folder.config | {key: value}, folder.tensors)
        with pytest.raises(ValueError, match=message):
            VisionLanguageModel.from_pretrained(tmp_path)
