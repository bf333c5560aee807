"""The whole model: batches with different numbers of pictures, places, files, and that it learns to look."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import mm
from mm.backbone import LanguageBackbone
from mm.data.tokenizer import tiny_tokenizer
from mm.encoders.lavi.model import LaviModel, LaviModelConfig
from mm.vision import ImagePreprocessing, TowerConfig, build_tower
from mm.vlm import PromptConfig

TOWER = TowerConfig(
    name="vit_tiny_patch16_224",
    options={"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4},
    preprocessing=ImagePreprocessing(size=16),
)
LAVI = {"width": 16, "num_heads": 4, "num_kv_heads": 2, "layers": "every:2"}
QUESTIONS = ["what is in row 3 ?", "is it red ?", "one <image> or two ?", "a red <image> row <image> ?"]


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def pictures() -> list:
    """One picture in front, text alone, one inside, two."""
    return [picture(0), None, [picture(1)], [picture(2), picture(3)]]


@pytest.fixture(scope="session")
def make_model(toolbox):
    def make(family: str = "llama", *, start: bool = False, lavi: dict | None = None, **options: object) -> LaviModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tower = build_tower(TOWER)
        tokenizer = tiny_tokenizer()
        backbone = LanguageBackbone.tiny(family, vocab_size=len(tokenizer))
        options.setdefault("prompt", PromptConfig())
        model = LaviModel.from_parts(tower, backbone, tokenizer, lavi=LAVI | (lavi or {}), **options).eval()
        if not start:
            toolbox.randomise(model.lavi, std=1.0)
        return model

    return make


@pytest.fixture(scope="session")
def model(make_model) -> LaviModel:
    return make_model()


# --- batches -----------------------------------------------------------------------------------------------------


def test_words_only_enter_the_language_model(model):
    batch = model.prepare(pictures(), QUESTIONS)
    image = model.processor.image_token_id
    assert not (batch["input_ids"] == image).any()
    assert batch["visual_counts"].tolist() == [1, 0, 1, 2] and batch["pixel_values"].shape == (4, 3, 16, 16)
    assert batch["attention_mask"].sum(1).tolist() == [
        len(model.processor.tokenizer(question.replace("<image>", "")).input_ids) for question in QUESTIONS
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_row_of_a_batch_is_the_row_alone_on_either_side(make_model, family, interleaved, side):
    model = make_model(family, interleaved=interleaved)
    batch = model.prepare(pictures(), QUESTIONS, padding_side=side)
    logits = model(**batch).logits
    answers = model.generate(**batch, max_new_tokens=5, min_new_tokens=5)
    for index, (images, question) in enumerate(zip(pictures(), QUESTIONS, strict=True)):
        alone = model.prepare([images], [question])
        keep = batch["attention_mask"][index].bool()
        torch.testing.assert_close(logits[index, keep], model(**alone).logits[0], rtol=0, atol=2e-5)
        assert torch.equal(answers[index], model.generate(**alone, max_new_tokens=5, min_new_tokens=5)[0])


def test_pictures_matter_and_text_rows_are_plain(model):
    batch = model.prepare(pictures(), QUESTIONS)
    logits = model(**batch).logits
    plain = model(batch["input_ids"], batch["attention_mask"]).logits
    assert torch.equal(logits[1], plain[1])
    assert not torch.allclose(logits[0], plain[0], atol=1e-3)
    other = model.prepare([picture(9), *pictures()[1:]], QUESTIONS)
    changed = model(**other).logits
    assert not torch.allclose(changed[0], logits[0], atol=1e-3)
    torch.testing.assert_close(changed[1:], logits[1:], rtol=0, atol=2e-5)


def test_a_context_is_kept_over_questions(model):
    first, second = (model.prepare(picture(0), question) for question in ("what is in row 3 ?", "is it red ?"))
    visual = model.encode(first["pixel_values"], first["visual_counts"])
    for batch in (first, second):
        again = model(batch["input_ids"], batch["attention_mask"], visual=visual).logits
        torch.testing.assert_close(again, model(**batch).logits)
    with pytest.raises(ValueError, match="either pixel_values or visual"):
        model(**first, visual=visual)


def test_equal_counts_need_no_counts_and_no_mask(model):
    batch = model.prepare([[picture(0), picture(1)], [picture(2), picture(3)]], ["is it red ?"] * 2)
    visual = model.encode(batch["pixel_values"], batch_size=2)
    assert visual.mask is None and visual.present is None
    torch.testing.assert_close(model(**batch).logits, model(batch["input_ids"], visual=visual).logits)


# --- places -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "tile", "frame", "none"])
def test_order_of_pictures_is_seen_through_their_ids(make_model, kind):
    model = make_model(picture_ids=kind)
    batch = model.prepare([[picture(0), picture(1)]], ["is it red ?"])
    swapped = batch | {"pixel_values": batch["pixel_values"].flip(0)}
    same = torch.allclose(model(**batch).logits, model(**swapped).logits, atol=1e-4)
    assert same == (kind == "none")
    if kind in ("tile", "frame"):
        given = {f"{kind}_ids": torch.tensor([1, 0])}
        torch.testing.assert_close(model(**swapped, **given).logits, model(**batch).logits, rtol=0, atol=2e-5)


def test_interleaved_words_see_the_pictures_before_them(make_model):
    model = make_model(interleaved=True)
    text = "a red <image> row <image> ?"
    batch = model.prepare([[picture(0), picture(1)]], [text])
    opening = len(model.processor.tokenizer("a red").input_ids)
    assert batch["image_starts"].tolist() == [[opening, opening + 1]]
    other = model.prepare([[picture(0), picture(5)]], [text])
    one, two = model(**batch).logits, model(**other).logits
    torch.testing.assert_close(one[:, : opening + 1], two[:, : opening + 1], rtol=0, atol=1e-5)
    assert not torch.allclose(one[:, opening + 1], two[:, opening + 1], atol=1e-3)


def test_large_pictures_become_tiles(make_model):
    model = make_model(grids=((1, 1), (2, 2)), picture_ids="tile")
    large = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    batch = model.prepare(large, "is it red ?")
    assert batch["visual_counts"].tolist() == [5]
    assert model.encode(batch["pixel_values"], batch["visual_counts"]).num_slots == 5 * model.tokens_per_picture


def test_pooling_reduces_what_text_looks_at(make_model):
    model = make_model(lavi={"pool": 1})
    batch = model.prepare(pictures(), QUESTIONS)
    assert model.tokens_per_picture == 1
    assert model.encode(batch["pixel_values"], batch["visual_counts"]).num_slots == 2


# --- training ---------------------------------------------------------------------------------------------------


def test_learns_to_tell_two_pictures_apart(make_model, gradients):
    model = make_model(start=True, lavi={"layers": "every:1"}).freeze(language=True, tower=True).train()
    batch = model.prepare([picture(0), picture(1)], ["what is it ?"] * 2, ["red", "blue"], padding_side="right")
    assert (batch["labels"] == -100).any()
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(40):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]  # a random frozen head of this width cannot be more certain
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert [model.ask(picture(i), "what is it ?", max_new_tokens=1) for i in range(2)] == ["red", "blue"]
    assert model.training and not model.lavi.language_model.training and not model.tower.training


# --- files --------------------------------------------------------------------------------------------------------


def test_saved_model_answers_as_before(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    loaded = mm.load(tmp_path / "model")
    batch = loaded.prepare(pictures(), QUESTIONS)
    assert torch.equal(loaded(**batch).logits, model(**model.prepare(pictures(), QUESTIONS)).logits)
    assert loaded.config == model.config
    assert loaded.ask(picture(0), "is it red ?") == model.ask(picture(0), "is it red ?")


def test_files_name_the_parts_like_adapter_files(model, tmp_path):
    from safetensors.torch import load_file

    names = set(load_file(model.save_pretrained(tmp_path / "model") / "model.safetensors"))
    assert {name.split(".")[0] for name in names} == {"vision_tower", "visual_proj", "cond", "language_model"}
    assert "language_model.model.layers.0.input_layernorm.weight" in names
    broken = {name: torch.zeros(1) for name in ("cond.layers.0.kv.k_proj.weight", "cond.layers.9.x")}
    expected = r"(?s)unexpected \(1\): cond.layers.9.x.*reshaped \(1\): lavi.cond.layers.0.kv.k_proj"
    with pytest.raises(ValueError, match=expected):
        model.load_checkpoint_state(broken, source="there")


# --- wrong input ---------------------------------------------------------------------------------------------------


def test_counts_that_do_not_fit_are_named(model):
    batch = model.prepare(pictures(), QUESTIONS)
    with pytest.raises(ValueError, match=r"sums to 5, but pixel_values holds 4"):
        model(**(batch | {"visual_counts": torch.tensor([1, 1, 1, 2])}))
    with pytest.raises(ValueError, match="3 entries for a batch of 4"):
        model(**(batch | {"visual_counts": torch.tensor([1, 1, 2])}))
    with pytest.raises(ValueError, match="4 pictures cannot be shared out evenly to 3"):
        model.encode(batch["pixel_values"], batch_size=3)


def test_parts_that_do_not_fit_are_named(model):
    config = model.config
    wide = LaviModelConfig(tower=config.tower, language=config.language, lavi=replace(config.lavi, vision_width=31))
    with pytest.raises(ValueError, match="gives 32 channels"):
        LaviModel(wide)
    with pytest.raises(ValueError, match=r"read at layer -2, but lavi.vision_feature_layers is \(-1,\)"):
        replace(config, lavi=replace(config.lavi, vision_feature_layers=(-1,)))
    with pytest.raises(ValueError, match="picture_ids must be"):
        replace(config, picture_ids="video")
    silent = LaviModel(config, tower=model.tower)
    with pytest.raises(ValueError, match="has no tokenizer"):
        silent.prepare(picture(0), "is it red ?")
