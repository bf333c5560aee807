"""Hugging Face models behind our methods: untouched numbers, right positions, the same answer in any batch."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from mm.vlm import VisionLanguageModel
from mm.vlm.hf_native import NativeVisionLanguageModel

QWEN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>")
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}"
    "{{ p['text'] }}{% endif %}{% endfor %}{% endif %} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> ASSISTANT {% endif %}"
)
KINDS = ["llava_next", "qwen2_vl", "qwen2_5_vl"]


def llava_next(tokenizer):
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "llava_next",
        vision_config={"model_type": "clip_vision_model", **vision, "image_size": 16, "patch_size": 8},
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
    )
    processor = LlavaNextProcessor(images, tokenizer, 8, "default", num_additional_image_tokens=1)
    return config, processor


def qwen(tokenizer, model_type):
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    vision = {"depth": 2, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2}
    if model_type == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "window_size": 16}
        vision |= {"fullatt_block_indexes": [1]}
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = AutoConfig.for_model(
        model_type,
        vision_config=vision,
        text_config=TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        **{f"{name}_token_id": value for name, value in ids.items()},
    )
    sizes = {"patch_size": 4, "merge_size": 2, "min_pixels": 64, "max_pixels": 4096}
    cls = Qwen2VLProcessor if model_type == "qwen2_vl" else Qwen2_5_VLProcessor
    return config, cls(Qwen2VLImageProcessor(**sizes), tokenizer, Qwen2VLVideoProcessor(**sizes))


@pytest.fixture(params=KINDS)
def folder(request, tmp_path, word_tokenizer, redraw):
    if request.param == "llava_next":
        config, processor = llava_next(word_tokenizer("<image>"))
    else:
        tokenizer = word_tokenizer(*QWEN, bos=False)
        tokenizer.chat_template = TEMPLATE
        config, processor = qwen(tokenizer, request.param)
        processor.chat_template = TEMPLATE
    model = AutoModelForImageTextToText.from_config(config).eval()
    redraw(model)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def model(folder):
    return VisionLanguageModel.from_pretrained(folder)


@pytest.fixture
def samples(picture):
    """A wide picture, text alone, a picture inside the words, two pictures of unequal size."""
    images = [picture(0, (24, 40)), None, picture(1, (32, 16)), [picture(2, (16, 16)), picture(3, (24, 24))]]
    return images, ["what is red ?", "is in the row ?", "one two <image> three ?", "a <image> the <image> six"]


@torch.no_grad()
def test_forward_is_the_hugging_face_forward(folder, model, samples):
    assert isinstance(model, NativeVisionLanguageModel)
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    batch = model.prepare(*samples)
    inputs = {key: value for key, value in batch.items() if key != "visual_counts"}
    assert batch["visual_counts"].tolist() == [1, 0, 1, 2]
    assert torch.equal(model(**batch).logits, theirs(**inputs).logits)


@torch.no_grad()
def test_prepare_gives_what_the_hugging_face_processor_gives(model, samples):
    images, _ = samples
    token = {"llava_next": "<image>"}.get(model.model_type, "<|vision_start|><|image_pad|><|vision_end|>")
    if model.model_type == "llava_next":
        text = f"USER: {token}\nwhat is red ? ASSISTANT:"
    else:
        text = f"<|im_start|> user {token}\nwhat is red ? <|im_end|> <|im_start|> ASSISTANT "
    theirs = model.processor(images=[images[0]], text=[text], return_tensors="pt")
    ours = model.prepare(images[0], "what is red ?")
    assert torch.equal(ours["input_ids"], theirs["input_ids"])
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
    assert torch.equal(model.prepare(images[0], text, raw=True)["input_ids"], theirs["input_ids"])


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_row_of_a_batch_is_the_row_alone_on_either_side(model, samples, side):
    images, questions = samples
    batch = model.prepare(images, questions, padding_side=side)
    logits = model(**batch).logits
    answers = model.generate(**batch, max_new_tokens=5, min_new_tokens=5)
    assert answers.shape == (4, 5)
    for index in range(4):
        alone = model.prepare([images[index]], [questions[index]])
        keep = batch["attention_mask"][index].bool()
        torch.testing.assert_close(logits[index, keep], model(**alone).logits[0], rtol=0, atol=2e-5)
        assert torch.equal(answers[index], model.generate(**alone, max_new_tokens=5, min_new_tokens=5)[0])


@torch.no_grad()
def test_generation_is_greedy_over_full_recomputation(model, samples):
    images, _ = samples
    batch = model.prepare(images[0], "what ?")
    generated = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, eos_token_id=-1)[0].tolist()
    for token in generated:
        assert model(**batch).logits[0, -1].argmax() == token
        for key, value in {"input_ids": token, "attention_mask": 1, "mm_token_type_ids": 0}.items():
            if key in batch:
                batch[key] = torch.cat([batch[key], torch.tensor([[value]])], dim=1)


@torch.no_grad()
def test_visual_tokens_are_as_many_as_placeholders(model, samples):
    batch = model.prepare(*samples)
    sizes = {key: batch[key] for key in ("image_grid_thw", "image_sizes") if key in batch}
    tokens = model.visual_tokens(batch["pixel_values"], **sizes)
    assert len(tokens) == 4 and all(item.shape[1] == 32 for item in tokens)
    assert sum(map(len, tokens)) == int((batch["input_ids"] == model.config.image_token_id).sum())


@torch.no_grad()
def test_answers_are_labels_behind_the_prompt(model, samples):
    images, questions = samples
    plain = model.prepare([images[0], None], questions[:2])
    for side in ("left", "right"):
        batch = model.prepare([images[0], None], questions[:2], ["five", "six ."], padding_side=side)
        for index, answer in enumerate(["five </s>", "six . </s>"]):
            labels = batch["labels"][index]
            words = model.processor.tokenizer.convert_ids_to_tokens(labels[labels != -100])
            assert " ".join(words) == answer
            row = batch["input_ids"][index][batch["attention_mask"][index].bool()]
            prompt = plain["input_ids"][index][plain["attention_mask"][index].bool()]
            assert torch.equal(row[: len(prompt)], prompt)
        assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize("folder", ["qwen2_vl", "qwen2_5_vl"], indirect=True)
@torch.no_grad()
def test_token_types_are_demanded_and_make_three_dimensional_positions(model, samples):
    batch = model.prepare(samples[0][0], "what ?")
    seen = []
    model.model.model.language_model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    model(**batch)
    rows = seen[0][-3:, 0]
    where = batch["mm_token_type_ids"][0].bool()
    _, height, width = (batch["image_grid_thw"][0] // torch.tensor([1, 2, 2])).tolist()
    start = int(where.long().argmax())
    time, row, column = (axis[where] - start for axis in rows)
    assert not time.any()
    assert row.tolist() == [i for i in range(height) for _ in range(width)]
    assert column.tolist() == list(range(width)) * height
    assert rows[:, start + height * width].tolist() == [start + max(height, width)] * 3
    del batch["mm_token_type_ids"]
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="mm_token_type_ids is missing"):
            call(**batch)


@pytest.mark.parametrize("folder", ["qwen2_5_vl"], indirect=True)
@torch.no_grad()
def test_a_call_leaves_no_positions_behind(model, samples):
    """A text continued token by token from its cache must not start at the offset of an earlier picture."""
    images, questions = samples
    ids = model.prepare(None, ["is in the row ?"])["input_ids"]
    model(**model.prepare(images[0], questions[0]))
    start = model(ids[:, :-1], use_cache=True)
    last = model(ids[:, -1:], past_key_values=start.past_key_values).logits[:, -1]
    torch.testing.assert_close(last, model(ids).logits[:, -1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_saved_and_loaded_is_equal(model, samples, tmp_path):
    batch = model.prepare(*samples)
    again = VisionLanguageModel.from_pretrained(model.save_pretrained(tmp_path / "again"))
    assert torch.equal(again(**again.prepare(*samples)).logits, model(**batch).logits)
    answers = [m.ask(samples[0][0], "what ?", max_new_tokens=3) for m in (model, again)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        ([None, 0], ["is ?", "<image> a <image> ?"], "sample 1: 2 <image> placeholders in the text, but 1 pictures"),
        ([0, None], ["what ?", "  "], "sample 1: the prompt is empty"),
        ([0], ["what ?", "is ?"], "2 texts but 1 entries of images"),
    ],
)
@pytest.mark.parametrize("folder", ["qwen2_5_vl"], indirect=True)
def test_mistakes_are_named(model, picture, images, text, message):
    with pytest.raises(ValueError, match=message):
        model.prepare([None if image is None else picture(image) for image in images], text)


@pytest.mark.parametrize("folder", ["qwen2_5_vl"], indirect=True)
def test_wrong_visual_counts_are_refused(model, picture):
    batch = model.prepare(picture(0), "what ?") | {"visual_counts": torch.tensor([2])}
    with pytest.raises(ValueError, match="sums to 2, the batch holds 1 pictures"):
        model(**batch)


def test_weights_that_do_not_fit_are_listed(folder):
    tensors = load_file(folder / "model.safetensors")
    norm = next(key for key in tensors if key.endswith("input_layernorm.weight"))
    del tensors[norm]
    tensors["surprise"] = torch.zeros(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError) as error:
        VisionLanguageModel.from_pretrained(folder)
    assert "input_layernorm.weight" in str(error.value) and "surprise" in str(error.value)


@pytest.mark.parametrize("folder", ["llava_next"], indirect=True)
def test_folder_without_a_processor_takes_tensors_and_says_so(folder):
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    model = VisionLanguageModel.from_pretrained(folder)
    assert model(torch.tensor([[1, 5, 6]])).logits.shape[-1] == config["text_config"]["vocab_size"]
    with pytest.raises(ValueError, match="has no processor"):
        model.ask(None, "what ?")


def test_frozen_tower_and_language(model):
    model.freeze(language=True, tower=True)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("projector" in name or "image_newline" in name for name in trainable)
