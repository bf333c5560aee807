"""The concatenation host: spliced = by hand, batch = alone, saved = loaded, and it learns to look."""

import json

import pytest
import torch

import mm
from mm.backbone import LanguageBackbone
from mm.vision import build_tower
from mm.vlm import PromptConfig, VisionLanguageModel

QUESTIONS = ["what is in the row ?", "is red ?", "one two <image> three six seven ?", "a red <image> row <image> ?"]


@pytest.fixture
def samples(picture):
    """One picture in front, text alone, a picture inside, two pictures."""
    return [picture(0), None, [picture(1)], [picture(2), picture(3)]], QUESTIONS


@torch.no_grad()
def test_logits_are_those_of_a_sequence_joined_by_hand(host, samples):
    images, questions = samples
    batch = host.prepare([images[2]], [questions[2]])
    ids = batch["input_ids"][0]
    where = (ids == host.config.image_token_id).nonzero().flatten()
    assert len(where) == host.tokens_per_picture == 4
    start, stop = int(where[0]), int(where[-1]) + 1
    features = host.tower(batch["pixel_values"]).tokens
    projected = host.projector(features)[0]
    words = host.backbone.embed(ids[None].clamp(max=len(host.processor.tokenizer) - 1))[0]
    joined = torch.cat([words[:start], projected, words[stop:]])[None]
    expected = host.backbone.model(inputs_embeds=joined).logits
    torch.testing.assert_close(host(**batch).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral", "opt"])
@torch.no_grad()
def test_row_of_a_batch_is_the_row_alone_on_either_side(make_host, samples, family, side):
    host = make_host(family)
    images, questions = samples
    batch = host.prepare(images, questions, padding_side=side)
    logits = host(**batch).logits
    answers = host.generate(**batch, max_new_tokens=6, min_new_tokens=6)
    for index in range(4):
        alone = host.prepare([images[index]], [questions[index]])
        keep = batch["attention_mask"][index].bool()
        torch.testing.assert_close(logits[index, keep], host(**alone).logits[0], rtol=0, atol=2e-5)
        assert torch.equal(answers[index], host.generate(**alone, max_new_tokens=6, min_new_tokens=6)[0])


@torch.no_grad()
def test_generation_is_greedy_over_full_recomputation(host, samples):
    images, questions = samples
    batch = host.prepare([images[3]], [questions[3]])
    generated = host.generate(**batch, max_new_tokens=5, min_new_tokens=5, eos_token_id=-1)[0].tolist()
    for token in generated:
        assert host(**batch).logits[0, -1].argmax() == token
        batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([[token]])], dim=1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])


@torch.no_grad()
def test_loss_is_the_mean_over_answer_tokens(host, samples):
    images, questions = samples
    batch = host.prepare(images, questions, ["five", "six .", "a", "red row ."], padding_side="right")
    output = host(**batch)
    log_p = output.logits[:, :-1].log_softmax(-1)
    labels = batch["labels"][:, 1:]
    chosen = log_p.gather(2, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(output.loss, -chosen[labels != -100].mean())


@torch.no_grad()
def test_picture_matters_and_only_to_its_own_row(host, samples, picture):
    images, questions = samples
    before = host(**host.prepare(images, questions)).logits
    after = host(**host.prepare([picture(9), *images[1:]], questions)).logits
    assert (before[0] - after[0]).abs().max() > 1e-3
    assert torch.equal(before[1:], after[1:])


@torch.no_grad()
def test_text_alone_is_the_plain_language_model(host):
    batch = host.prepare(None, ["what is red ?"])
    assert batch["pixel_values"].shape == (0, 3, 16, 16)
    expected = host.backbone.model(batch["input_ids"]).logits
    torch.testing.assert_close(host(**batch).logits, expected, rtol=0, atol=1e-6)
    del batch["pixel_values"], batch["visual_counts"]
    torch.testing.assert_close(host(**batch).logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("select", "first"), [("patches", 1), ("all", 0), ("drop_first", 1)])
@torch.no_grad()
def test_feature_selection(make_host, picture, select, first):
    host = make_host(feature_select=select, projector="linear")
    pixels = host.prepare(picture(0), "what ?")["pixel_values"]
    hidden = host.tower.run(pixels)
    torch.testing.assert_close(host.visual_tokens(pixels), host.projector(hidden[:, first:]))
    assert host.tokens_per_picture == hidden[:, first:].shape[1]


@torch.no_grad()
def test_tower_without_class_token_loses_a_patch_only_when_asked(make_host, word_tokenizer):
    from mm.vision import ImagePreprocessing, TowerConfig

    sizes = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    tower = build_tower(
        TowerConfig(name="vit_base_patch16_siglip_224", options=sizes, preprocessing=ImagePreprocessing(size=16))
    )
    backbone = LanguageBackbone.tiny("llama", vocab_size=40)
    for select, count in (("patches", 4), ("all", 4), ("drop_first", 3)):
        host = VisionLanguageModel.from_parts(tower, backbone, word_tokenizer("<image>"), feature_select=select)
        assert host.visual_tokens(torch.zeros(2, 3, 16, 16)).shape == (2, count, backbone.width)


@torch.no_grad()
def test_feature_scale_is_the_square_root_of_the_width(make_host):
    pixels = torch.randn(1, 3, 16, 16)
    plain, scaled = make_host("gemma"), make_host("gemma", feature_scale="sqrt_width")
    torch.testing.assert_close(scaled.visual_tokens(pixels), plain.visual_tokens(pixels) * 32**0.5)
    rounded = torch.tensor(32**0.5, dtype=torch.bfloat16)
    plain, scaled = plain.bfloat16(), scaled.bfloat16()
    assert torch.equal(scaled.visual_tokens(pixels), plain.visual_tokens(pixels) * rounded)


# --- files ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_saved_and_loaded_is_bit_equal_with_everything_it_needs(make_host, samples, tmp_path):
    host = make_host("gemma", projector="linear", grids=((1, 1), (1, 2)))  # tied embeddings
    images, questions = samples
    folder = host.save_pretrained(tmp_path / "host")
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"} <= names
    for loaded in (VisionLanguageModel.from_pretrained(folder), mm.load(folder)):
        assert loaded.config == host.config and loaded.tower.config.activation == "gelu"
        batch, again = host.prepare(images, questions), loaded.prepare(images, questions)
        assert all(torch.equal(batch[key], again[key]) for key in batch)
        assert torch.equal(host(**batch).logits, loaded(**again).logits)
    assert loaded.backbone.head.weight is loaded.backbone.embedding.weight


def test_damaged_folders_are_refused_by_name(host, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = host.save_pretrained(tmp_path / "host")
    tensors = load_file(folder / "model.safetensors")
    del tensors["projector.0.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing \(1\): projector\.0\.weight"):
        VisionLanguageModel.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["config"]["projektor"] = "linear"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json: VLMConfig has no key 'projektor'; did you mean 'projector'"):
        VisionLanguageModel.from_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"model_type 'bert' is not a vision-language model.*llava"):
        VisionLanguageModel.from_pretrained(folder)


def test_tokenizer_of_another_model_is_refused(host, word_tokenizer):
    with pytest.raises(ValueError, match=r"<image> as id 25, the config says image_token_id=24"):
        VisionLanguageModel(host.config, tokenizer=word_tokenizer("<extra>", "<image>"))


def test_model_without_a_tokenizer_takes_tensors_and_says_so(host):
    backbone = LanguageBackbone.tiny("llama", vocab_size=40)
    bare = VisionLanguageModel.from_parts(build_tower(host.config.tower), backbone, image_token_id=-200)
    ids = torch.tensor([[1, *[-200] * 4, 5]])
    assert bare(ids, pixel_values=torch.zeros(1, 3, 16, 16)).logits.shape == (1, 6, 40)
    with pytest.raises(ValueError, match="has no tokenizer"):
        bare.ask(None, "what ?")


# --- counting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"visual_counts": torch.tensor([1, 1])},
            "sample 1: 0 image placeholders in input_ids, but its 1 picture",
        ),
        ({"visual_counts": torch.tensor([1])}, "1 entries for a batch of 2"),
        ({"pixel_values": torch.zeros(2, 3, 16, 16)}, "visual_counts sums to 1, but pixel_values holds 2"),
        ({"pixel_values": None}, "visual_counts sums to 1, but pixel_values holds 0"),
        (
            {"visual_counts": None, "pixel_values": torch.zeros(2, 3, 16, 16)},
            r"4 image placeholders \(per sample: \[4, 0\]\)",
        ),
    ],
)
def test_counts_are_compared_before_the_model_runs(host, picture, change, message):
    batch = host.prepare([picture(0), None], ["what ?", "is red ?"]) | change
    host.tower.forward = host.backbone.forward = None  # not reached
    with pytest.raises(ValueError, match=message):
        host(**batch)
    with pytest.raises(ValueError, match=message):
        host.generate(**batch)


def test_half_a_picture_is_no_picture(host):
    ids = torch.full((2, 4), host.config.image_token_id)
    ids[0, :2] = ids[1, 2:] = 5
    with pytest.raises(ValueError, match="sample 0: 2 image placeholders are no whole number"):
        host(ids, pixel_values=torch.zeros(1, 3, 16, 16))


# --- training ------------------------------------------------------------------------------------------------------


def test_frozen_parts_stay_bit_equal_and_in_evaluation_mode(host, picture):
    host.freeze(language=True, tower=True).train()
    assert not host.backbone.model.training and not host.tower.training and host.training
    before = {key: value.clone() for key, value in host.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in host.parameters() if p.requires_grad], lr=0.1)
    host(**host.prepare([picture(0), None], ["what ?", "is ?"], ["five", "six"])).loss.backward()
    optimizer.step()
    changed = {key.partition(".")[0] for key, value in host.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"projector"}


def test_every_trainable_tensor_that_is_used_gets_a_gradient(host, picture):
    host.train()
    host(**host.prepare([picture(0), picture(1)], ["what ?", "is ?"], ["five", "six"])).loss.backward()
    without = {name for name, p in host.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    unused = {name for name in without if name.startswith(("tower.module.blocks.2.", "tower.module.norm."))}
    assert without == unused


def test_text_only_batch_leaves_zero_not_missing_projector_gradients(host):
    host(**host.prepare(None, ["what ?"], ["five"])).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in host.projector.parameters())


def test_projector_alone_learns_to_tell_pictures_apart(host, picture):
    host.freeze(language=True, tower=True)
    batch = host.prepare([picture(i) for i in range(4)], ["what ?"] * 4, ["five", "six", "red", "blue"])
    optimizer = torch.optim.Adam(host.projector.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = host(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert [host.ask(picture(i), "what ?") for i in range(4)] == ["five", "six", "red", "blue"]


def test_ask_leaves_the_mode_as_it_was(host, picture):
    host.train().ask(picture(0), "what ?", max_new_tokens=1)
    assert host.training and host.projector.training


def test_lora_must_be_merged_before_saving(host, tmp_path):
    if not hasattr(host.backbone, "lora"):
        pytest.skip("this backbone has no LoRA")
    host.backbone.lora(rank=2)
    with pytest.raises(ValueError, match="merge_lora"):
        host.save_pretrained(tmp_path / "host")
    host.backbone.merge_lora()
    host.save_pretrained(tmp_path / "host")


@torch.no_grad()
def test_forward_compiles_to_one_graph(host, picture):
    batch = host.prepare([picture(0), None], ["what ?", "is ?"])
    compiled = torch.compile(host, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(**batch).logits, host(**batch).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_low_precision_stays_close(host, picture, dtype):
    batch = host.prepare(picture(0), "what is red ?")
    full = host(**batch).logits
    low = host.to(dtype)(**batch).logits
    assert low.dtype == dtype and (low.float() - full).norm() < 0.05 * full.norm()


def test_prompt_of_the_config_is_used(make_host, picture):
    plain = make_host(prompt=PromptConfig())
    ids = plain.prepare(picture(0), "what ?")["input_ids"][0].tolist()
    assert plain.processor.tokenizer.convert_ids_to_tokens(ids[-2:]) == ["what", "?"]
