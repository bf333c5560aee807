"""Hugging Face LLaVA folders: logits and answers of `LlavaForConditionalGeneration`, from every key layout."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessor,
    LlavaProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)

from mm.vlm import VisionLanguageModel

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
VISION |= {"image_size": 16, "patch_size": 8}
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
VARIANTS = {
    "clip-llama": (CLIPVisionConfig(**VISION), LlamaConfig(**TEXT), {}),
    "clip-full": (CLIPVisionConfig(**VISION), LlamaConfig(**TEXT), {"vision_feature_select_strategy": "full"}),
    "siglip-qwen2-tied": (
        SiglipVisionConfig(**VISION),
        Qwen2Config(**TEXT, tie_word_embeddings=True),
        {"vision_feature_select_strategy": "full", "vision_feature_layer": -1, "tie_word_embeddings": True},
    ),
    "siglip-gemma": (
        SiglipVisionConfig(**VISION, vision_use_head=False),
        GemmaConfig(**TEXT, head_dim=8),
        {"multimodal_projector_bias": False, "tie_word_embeddings": True},
    ),
}


def build(redraw, variant="clip-llama", image_token_id=24):
    vision, text, options = VARIANTS[variant]
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=image_token_id, **options)
    model = LlavaForConditionalGeneration(config)
    redraw(model)
    return model.eval()


def batch_for(model, image_token_id=24):
    """Two rows, left-padded, and one without a picture."""
    strategy = model.config.vision_feature_select_strategy
    clip = model.config.vision_config.model_type == "clip_vision_model"
    count = 4 + clip - (strategy == "default")
    long = [1, 5, *[image_token_id] * count, 6, 7, 8]
    short = [1, *[image_token_id] * count, 9]
    text = [1, 11, 12]
    ids = torch.tensor([[0] * (len(long) - len(row)) + row for row in (long, short, text)])
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_logits_equal_hugging_face(redraw, tmp_path, variant):
    theirs = build(redraw, variant)
    theirs.save_pretrained(tmp_path)
    ours = VisionLanguageModel.from_pretrained(tmp_path)
    batch = batch_for(theirs)
    expected = theirs(**batch).logits
    keep = batch["attention_mask"].bool()
    found = ours(**batch, visual_counts=torch.tensor([1, 1, 0])).logits
    torch.testing.assert_close(found[keep], expected[keep], rtol=0, atol=1e-5)
    for row in range(2):  # alone, without padding
        ids = batch["input_ids"][row][keep[row]][None]
        alone = {"input_ids": ids, "pixel_values": batch["pixel_values"][row : row + 1]}
        torch.testing.assert_close(ours(**alone).logits, theirs(**alone).logits, rtol=0, atol=1e-5)
    assert ours.tower.config.activation == ("quick_gelu" if "clip" in variant else "gelu_tanh")


@torch.no_grad()
def test_loss_and_generation_equal_hugging_face(redraw, tmp_path):
    theirs = build(redraw)
    theirs.save_pretrained(tmp_path)
    ours = VisionLanguageModel.from_pretrained(tmp_path)
    batch = batch_for(theirs)
    labels = batch["input_ids"].masked_fill((batch["input_ids"] == 24) | (batch["attention_mask"] == 0), -100)
    torch.testing.assert_close(ours(**batch, labels=labels).loss, theirs(**batch, labels=labels).loss)
    expected = theirs.generate(**batch, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    found = ours.generate(**batch, max_new_tokens=6, min_new_tokens=6)
    assert torch.equal(found, expected[:, batch["input_ids"].shape[1] :])


def rewrite(folder, change):
    tensors = {new: value for key, value in load_file(folder / "model.safetensors").items() for new in [change(key)]}
    save_file(tensors, folder / "model.safetensors")


@torch.no_grad()
def test_low_precision_load_keeps_rotary_tables_exact(redraw, tmp_path):
    build(redraw).save_pretrained(tmp_path)
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ours = VisionLanguageModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    saved = ours.save_pretrained(tmp_path / "ours")
    batch = {"input_ids": torch.arange(300)[None] % 20 + 3}  # long enough for rounded angles to show
    expected = theirs(**batch).logits
    for model in (ours, VisionLanguageModel.from_pretrained(saved, dtype=torch.bfloat16)):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
        assert torch.equal(model(**batch).logits, expected)


@pytest.mark.parametrize("layout", ["hub", "state_dict", "state_dict_with_vision_model"])
@torch.no_grad()
def test_every_key_layout_gives_the_same_model(redraw, tmp_path, layout):
    theirs = build(redraw)
    theirs.save_pretrained(tmp_path)
    batch = batch_for(theirs)
    if layout == "hub":
        assert "vision_tower.encoder.layers.0.mlp.fc1.weight" in load_file(tmp_path / "model.safetensors")
        rewrite(tmp_path, lambda key: key.replace("vision_tower.", "vision_tower.vision_model."))
        old = load_file(tmp_path / "model.safetensors")
        old["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
        old["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
        save_file(old, tmp_path / "model.safetensors")
    else:
        middle = "vision_model." if layout.endswith("vision_model") else ""
        state = {k.replace("vision_tower.", f"vision_tower.{middle}"): v for k, v in theirs.state_dict().items()}
        assert f"model.vision_tower.{middle}encoder.layers.0.mlp.fc1.weight" in state and "lm_head.weight" in state
        save_file(state, tmp_path / "model.safetensors")
    ours = VisionLanguageModel.from_pretrained(tmp_path)
    keep = batch["attention_mask"].bool()
    torch.testing.assert_close(ours(**batch).logits[keep], theirs(**batch).logits[keep], rtol=0, atol=1e-5)


@torch.no_grad()
def test_shards_are_joined_and_a_missing_one_is_named(redraw, tmp_path):
    theirs = build(redraw)
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    batch = batch_for(theirs)
    keep = batch["attention_mask"].bool()
    ours = VisionLanguageModel.from_pretrained(tmp_path)
    torch.testing.assert_close(ours(**batch).logits[keep], theirs(**batch).logits[keep], rtol=0, atol=1e-5)
    shards[0].unlink()
    with pytest.raises(FileNotFoundError, match=shards[0].name):
        VisionLanguageModel.from_pretrained(tmp_path)


def test_projector_is_never_silently_random(redraw, tmp_path):
    build(redraw).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["multi_modal_projector.linear_2.weight"]
    tensors["image_newline"] = torch.zeros(32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        VisionLanguageModel.from_pretrained(tmp_path)
    assert "missing (1): projector.2.weight" in str(error.value)
    assert "unexpected (1): image_newline" in str(error.value)


def test_untied_head_is_not_invented(redraw, tmp_path):
    build(redraw).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing \(1\): backbone\.model\.lm_head\.weight"):
        VisionLanguageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vision_feature_layer", [-2, -1], "vision_feature_layer is 'list', supported: int"),
        ("projector_hidden_act", "relu", "projector_hidden_act is 'relu', supported: gelu"),
    ],
)
def test_variants_that_would_differ_are_refused(redraw, tmp_path, key, value, message):
    build(redraw).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        VisionLanguageModel.from_pretrained(tmp_path)


@pytest.fixture
def folder_with_processor(redraw, tmp_path, word_tokenizer):
    tokenizer = word_tokenizer("<image>")
    image_processor = LlavaImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_pad=True
    )
    processor = LlavaProcessor(
        image_processor, tokenizer, 8, "default", num_additional_image_tokens=1, chat_template=None
    )
    model = build(redraw, image_token_id=tokenizer.convert_tokens_to_ids("<image>"))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path, model, processor


@torch.no_grad()
def test_question_is_prepared_as_by_the_hugging_face_processor(folder_with_processor, picture):
    folder, model, processor = folder_with_processor
    ours = VisionLanguageModel.from_pretrained(folder)
    assert ours.tower.preprocessing.resize == "pad"
    image = picture(0, (16, 16))  # no resampling, in which the two libraries' backends differ
    theirs = processor(images=image, text="USER: <image>\nwhat is red ? ASSISTANT:", return_tensors="pt")
    batch = ours.prepare(image, "what is red ?")
    assert torch.equal(batch["input_ids"], theirs["input_ids"])
    torch.testing.assert_close(batch["pixel_values"], theirs["pixel_values"], rtol=0, atol=1e-5)
    expected = model.generate(**theirs, max_new_tokens=4, do_sample=False)[0, theirs["input_ids"].shape[1] :]
    answer = processor.tokenizer.decode(expected, skip_special_tokens=True)
    assert ours.ask(image, "what is red ?", max_new_tokens=4) == answer.strip()


def test_chat_template_of_the_folder_is_used_and_kept(folder_with_processor, picture, tmp_path):
    folder, _, _ = folder_with_processor
    template = (
        "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<image> {% else %}"
        "{{ p['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT :"
    )
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    ours = VisionLanguageModel.from_pretrained(folder)
    assert ours.config.prompt.format == "chat"
    again = VisionLanguageModel.from_pretrained(ours.save_pretrained(tmp_path / "again"))
    for model in (ours, again):
        ids = model.prepare(picture(0), "what ?")["input_ids"][0].tolist()
        tokens = model.processor.tokenizer.convert_ids_to_tokens(ids)
        assert tokens == ["<image>"] * 4 + ["what", "?", "ASSISTANT", ":"]
