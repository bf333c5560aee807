"""The whole model: shapes, what must not change its answers, files, training module, data and evaluation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import mm
from mm.data.split import Split
from mm.medical import VelvetModel
from mm.medical.phantom_reports import attribute_words, described, report
from mm.medical.phantoms import draw_case, render
from mm.medical.velvet.config import TextConfig, VelvetConfig
from mm.medical.velvet.data import (
    MAX_SENTENCES,
    MAX_TOKENS,
    PhantomConfig,
    PhantomData,
    phantom_batch,
    phantom_tokenizer,
    twin_case,
    windowed,
)
from mm.medical.velvet.evaluate import evaluate, matching, retrieval
from mm.medical.velvet.held_out import HeldOut, held_out
from mm.medical.velvet.hidden_words import hide_attributes
from mm.medical.velvet.loss import LevelEmbeddings
from mm.medical.velvet.module import VelvetModule
from mm.medical.velvet.transfer import Learnt, TransferConfig, dice, learn
from mm.medical.velvet.where import _findings_of, _regions_with, evidence, occlusion, pointing
from tests.medical.velvet.conftest import small_text, small_vision


@pytest.fixture
def tiny():
    """A phantom model small enough for a test."""
    torch.manual_seed(0)
    text = phantom_tokenizer().text_config(small_text(max_tokens=MAX_TOKENS))
    config = VelvetConfig(vision=small_vision(), text=text, contrastive_width=8, vision_heads=False)
    return VelvetModel(config, tokenizer=phantom_tokenizer()).eval()


REPORTS = [["The liver is normal.", "No lung nodule."], ["Normal spleen."]]


def test_row_alone_equals_row_in_a_batch(tiny):
    volume = torch.rand(2, 1, 32, 32, 32)
    with torch.no_grad():
        both = tiny(volume, **tiny.tokenize(REPORTS))
        alone = tiny(volume[1:], **tiny.tokenize(REPORTS[1:]))
    torch.testing.assert_close(both.match_logits[1:], alone.match_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.text.report[1:], alone.text.report, rtol=1e-4, atol=1e-5)
    for level in ("report", "sentence", "word"):
        found = tiny.similarity(both.volume, both.text, level)[1:, 1:]
        torch.testing.assert_close(found, tiny.similarity(alone.volume, alone.text, level), rtol=1e-4, atol=1e-4)


def test_any_volume_size_is_embedded(tiny):
    for shape in ((40, 40, 40), (32, 48, 36)):
        found = tiny.volume_embeddings(tiny.encode_volume(torch.rand(1, 1, *shape)))
        assert found.report.shape == (1, 8) and found.word.shape[1] == torch.tensor(found.grids["word"]).prod()


def test_without_fusion_layers_it_only_embeds():
    model = VelvetModel(VelvetConfig(vision=small_vision(), text=small_text(fusion_layers=0), vision_heads=False))
    ids = torch.tensor([[2, 34, 10, 11]])
    real = torch.ones_like(ids, dtype=torch.bool)
    found = model(torch.rand(1, 1, 32, 32, 32), ids, real.long(), real, real)
    assert found.match_logits is None and found.text.report.shape == (1, 512)
    with pytest.raises(ValueError, match="only embeds"):
        model.visual_memory(model.encode_volume(torch.rand(1, 1, 32, 32, 32)))


def test_a_saved_model_keeps_its_vocabulary(tiny, tmp_path):
    loaded = mm.load(tiny.save_pretrained(tmp_path / "model"))
    assert loaded.tokenizer.vocabulary == tiny.tokenizer.vocabulary
    tokens, again = (model.tokenize(REPORTS) for model in (tiny, loaded))
    assert all(torch.equal(tokens[name], again[name]) for name in tokens)
    plain = VelvetModel(replace(tiny.config, text=replace(tiny.config.text)))
    with pytest.raises(ValueError, match="no tokenizer"):
        plain.tokenize(REPORTS)


def test_the_main_model_has_the_published_size(monkeypatch):
    linspace = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *args: linspace(*args, device="cpu"))
    with torch.device("meta"):
        model = VelvetModel(VelvetConfig.preset("Sv", "Bt", initial_temperature=0.07))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(242.7, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": ("report", "pages")}, "levels must name"),
        ({"last_layers": 99}, "last_layers must be"),
        ({"text": TextConfig(), "decoder": "mlp"}, "deconv or unet"),
    ],
)
def test_wrong_configs_are_sentences(changes, message):
    with pytest.raises(ValueError, match=message):
        VelvetConfig(**changes)


# --- data ------------------------------------------------------------------------------------------------------------


def test_batches_come_in_twins_and_repeat_themselves():
    config = PhantomConfig(size=16, crop=8, batch_size=4)
    seeds = Split("train").seeds[8:12]
    one, again = phantom_batch(seeds, config), phantom_batch(seeds, config)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert one["volume"].shape == (4, 1, 16, 16, 16) and one["corrupted"].shape == (8, 1, 8, 8, 8)
    assert one["volume"].min() >= 0 and one["volume"].max() <= 1
    changed = (one["input_ids"][0::2] != one["input_ids"][1::2]).sum(1)
    assert changed.tolist() == [1, 1], "twins must differ in one word"
    assert not torch.equal(one["input_ids"][0], one["input_ids"][2])


def test_every_report_fits_the_tokenizer():
    tokenizer = phantom_tokenizer()
    longest = 0
    for number in range(0, 3000, 2):
        ids, types = tokenizer.encode(report(twin_case(number)))
        longest = max(longest, len(ids))
        assert tokenizer.unk_id not in ids and max(types) <= MAX_SENTENCES
    assert longest < MAX_TOKENS, "reports are cut"


def test_the_data_module_continues_where_it_stood():
    data = PhantomData(PhantomConfig(size=16, crop=0, batch_size=2, held_out_batches=1))
    batches = iter(data.train_dataloader())
    first, second = next(batches), next(batches)
    data._loader.confirm()
    later = PhantomData(data.config)
    later.load_state_dict(data.state_dict())
    resumed = next(iter(later.train_dataloader()))
    assert torch.equal(resumed["volume"], second["volume"]) and not torch.equal(first["volume"], second["volume"])
    held = [next(iter(loader))["volume"] for loader in (data.val_dataloader(), data.test_dataloader())]
    assert not torch.equal(*held) and not torch.equal(held[0], first["volume"])
    with pytest.raises(ValueError, match="must be even"):
        PhantomConfig(batch_size=3)


# --- training module -------------------------------------------------------------------------------------------------


def test_a_step_through_lightning(tmp_path):
    import lightning

    module = VelvetModule(config={"vision": small_vision(), "contrastive_width": 8})
    data = PhantomData(PhantomConfig(size=32, crop=16, batch_size=2, held_out_batches=1))
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", limit_val_batches=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, default_root_dir=tmp_path,
    )  # fmt: skip
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    trainer.fit(module, data)
    assert any(not torch.equal(before[name], value) for name, value in module.model.state_dict().items())
    trainer.validate(module, data, verbose=False)
    first = trainer.callback_metrics["val/loss"]
    trainer.validate(module, data, verbose=False)
    assert trainer.callback_metrics["val/loss"] == first, "validation draws other words each time"
    assert {"val/report", "val/match", "val/rotation"} <= set(trainer.callback_metrics)


def test_an_unknown_size_is_refused():
    with pytest.raises(ValueError, match="tiny, paper"):
        VelvetModule(size="huge")


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_held_out_patients_are_others_and_differ():
    data = held_out(0, 8, size=16)
    assert len({" ".join(text) for text in data.reports}) == 8
    assert {case.seed for case in data.cases} < set(Split("test").seeds[: 2**20])
    assert not {case.seed for case in held_out(1, 8, size=16).cases} & {case.seed for case in data.cases}


def test_retrieval_of_a_model_that_knows_and_of_one_that_does_not(tiny, monkeypatch):
    data = HeldOut([draw_case(2 * number) for number in range(64)], torch.zeros(64, 1, 8, 8, 8))
    known = LevelEmbeddings(report=torch.eye(64))
    monkeypatch.setattr("mm.medical.velvet.evaluate.embed", lambda *_: (known, known))
    assert retrieval(tiny, data) == {"retrieval_r1_of_64": 1.0, "retrieval_shuffled": 0.0}
    same = LevelEmbeddings(report=torch.ones(64, 4))
    monkeypatch.setattr("mm.medical.velvet.evaluate.embed", lambda *_: (same, same))
    assert retrieval(tiny, data)["retrieval_r1_of_64"] == 0.0, "ties must not count as found"


def test_hidden_words_are_attributes_of_findings(tiny):
    cases = [draw_case(2 * number) for number in range(12)]
    hidden, rows, answers = hide_attributes(tiny, cases)
    assert len(rows) == sum(len(finding.attributes) for case in cases for finding in case.findings)
    assert ((hidden["input_ids"] == tiny.config.text.mask_id).sum(1) == 1).all()
    assert {tiny.tokenizer.piece(int(word)) for word in answers} <= attribute_words()


def test_matching_counts_a_constant_head_as_wrong(tiny):
    with torch.no_grad():
        tiny.match.weight.zero_()
    found = matching(tiny, held_out(0, 4, size=32))
    assert found["hard_negative_choice"] == 0.0 and found["hard_negative_decision"] in (0.0, 0.5)


def test_scores_of_random_weights_are_near_chance(tiny):
    found = evaluate(tiny, seed=0, count=64)
    assert found["retrieval_r1_of_64"] < 0.15 and found["hidden_attribute_right_volume"] < 0.2


def test_regions_that_hold_a_finding():
    """36 voxels on a grid of 3: cells of 16 voxels from the low corner, the last one cut."""
    mask = torch.zeros(36, 36, 36, dtype=torch.bool)
    mask[15, 0, 33] = mask[16, 0, 33] = True
    held = _regions_with(mask, (3, 3, 3)).view(3, 3, 3)
    assert held.nonzero().tolist() == [[0, 0, 2], [1, 0, 2]]


def test_pointing_of_a_model_that_looks_at_the_finding(tiny, monkeypatch):
    data = held_out(0, 4, size=32)
    monkeypatch.setattr("mm.medical.velvet.where._regions_with", lambda *_: torch.ones(8, dtype=torch.bool))
    assert pointing(tiny, data) == {"pointing": 1.0, "pointing_chance": 1.0}
    monkeypatch.setattr("mm.medical.velvet.where._regions_with", lambda *_: torch.zeros(8, dtype=torch.bool))
    assert pointing(tiny, data) == {"pointing": 0.0, "pointing_chance": 0.0}


@pytest.mark.parametrize("shift", [0, 2])
def test_pointing_of_attention_whose_answer_is_known(tiny, monkeypatch, shift):
    """Regions that equal the sentence about the finding they hold; moved along the first axis they miss it."""
    data = held_out(0, 8, size=36)
    regions, sentences = torch.zeros(8, 27, 16), torch.eye(16)[:10].repeat(8, 1, 1)
    for patient, case in enumerate(data.cases):
        lesions = torch.from_numpy(render(case, 36).lesions)
        for row, (number, _) in enumerate(described(case)):
            seen = (lesions == number + 1).nonzero() if number is not None else []
            for x, y, z in seen[:1]:
                regions[patient].view(3, 3, 3, 16)[(x // 16 + shift) % 3, y // 16, z // 16, row] = 1
    keep = torch.tensor([[row < len(text) for row in range(10)] for text in data.reports])
    monkeypatch.setattr(tiny, "config", replace(tiny.config, vision=replace(tiny.config.vision, volume_size=36)))
    volumes = LevelEmbeddings(sentence=regions, grids={"sentence": (3, 3, 3)})
    texts = LevelEmbeddings(sentence=sentences, sentence_keep=keep)
    monkeypatch.setattr("mm.medical.velvet.where.embed", lambda *_: (volumes, texts))
    found = pointing(tiny, data)["pointing"]
    assert found < 0.3 if shift else found == 1.0


def test_a_finding_that_sentences_never_saw_is_at_chance(tiny):
    """Every sentence loses nothing when the volume has no say; the first is taken, which is seldom the right one."""
    with torch.no_grad():
        tiny.level_head("sentence").vision.weight.zero_()
    data = held_out(0, 8, size=32)
    found = occlusion(tiny, data)
    assert 0 < found["occlusion_chance"] < 0.5 and found["technique_loses_most"] == 1.0, "ties go to the first"
    assert found["occlusion"] <= 0.5


def test_evidence_of_a_model_that_reads_one_cube(tiny, monkeypatch):
    """The right word depends on the voxels of its finding; a model that reads the far corner scores nothing."""
    data = held_out(0, 6, size=36)
    reads: dict[str, Any] = {}

    def encode_volume(volumes):
        reads["volumes"] = volumes
        return volumes

    def logits(model, tokens, memory):
        found = torch.zeros(len(memory), model.config.text.vocab_size)
        case = next(case for case in data.cases if torch.equal(windowed(render(case, 36).hu), reads["volumes"][0]))
        number = _findings_of(model, {name: value[:1] for name, value in tokens.items()}, case)[0]
        where = torch.from_numpy(render(case, 36).lesions) == number + 1
        if not looks:
            where = torch.zeros_like(where)
            where[:12, :12, :12] = True
        return found - (memory[:, 0] - memory[:1, 0])[:, where].abs().sum(-1, keepdim=True) * known(tokens, model)

    def known(tokens, model):
        hidden, _, answers = hide_attributes(model, data.cases)
        width = tokens["input_ids"].shape[1]
        same = [torch.equal(row[:width], tokens["input_ids"][0]) for row in hidden["input_ids"]]
        return torch.nn.functional.one_hot(answers[same.index(True)], model.config.text.vocab_size)

    monkeypatch.setattr(tiny, "encode_volume", encode_volume)
    monkeypatch.setattr(tiny, "visual_memory", lambda volumes: volumes)
    monkeypatch.setattr("mm.medical.velvet.where.masked_logits", logits)
    looks = True
    assert evidence(tiny, data)["evidence"] == 1.0
    looks = False
    assert evidence(tiny, data)["evidence"] == 0.0


# --- transfer --------------------------------------------------------------------------------------------------------


def test_dice_of_a_perfect_and_of_an_empty_network():
    labels = torch.arange(8).view(1, 1, 2, 2, 2).repeat(2, 1, 1, 1, 1)

    class Perfect(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.one_hot(labels[: len(x), 0], 8).movedim(-1, 1).float()

    class Empty(torch.nn.Module):
        def forward(self, x):
            return torch.zeros(len(x), 8, 2, 2, 2)

    images = torch.zeros(2, 1, 2, 2, 2)
    assert dice(Perfect(), images, labels)["worst"] == 1.0
    assert dice(Empty(), images, labels)["mean"] == 0.0


def test_steps_to_a_goal():
    rows = [{"step": 10, "worst": 0.5}, {"step": 20, "worst": 0.81}, {"step": 30, "worst": 0.79}]
    network = torch.nn.Identity()
    assert Learnt(network, rows).steps_to_good == 20 and Learnt(network, rows[:1]).steps_to_good == float("inf")


@pytest.mark.slow
def test_transfer_starts_from_the_encoder(tiny):
    config = TransferConfig(size=64, scans=1, held_out=1, batch_size=1, steps=2, every=1)
    encoder = VelvetModel(replace(tiny.config, vision=small_vision(embed_dim=12))).vision
    rows = learn(encoder, pretrained=True, seed=0, config=config).rows
    other = learn(encoder, pretrained=False, seed=0, config=config).rows
    assert [row["step"] for row in rows] == [1, 2] and rows != other  # same seed, so the encoder makes the difference
