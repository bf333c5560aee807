"""TriBERT, its heads and level vectors against numbers of the published code."""

from __future__ import annotations

import pytest
import torch

from mm.medical.velvet.config import TextConfig, VelvetConfig
from mm.medical.velvet.heads import LevelHead, MaskedWordHead, VisualAdapter
from mm.medical.velvet.keys import from_repository
from mm.medical.velvet.loss import (
    LevelEmbeddings,
    hierarchical_contrastive_loss,
    masked_word_loss,
    match_loss,
    report_similarity,
)
from mm.medical.velvet.mining import negative_weights
from mm.medical.velvet.pooling import combine_layers, pool_levels, sum_units
from mm.medical.velvet.text import TriBert, visible_tokens
from mm.medical.velvet.tokenizer import SentenceTokenizer

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def config(tribert):
    theirs = tribert.meta["config"]
    return TextConfig(
        vocab_size=theirs["vocab_size"],
        width=theirs["hidden_size"],
        feed_forward=theirs["intermediate_size"],
        layers=theirs["layer_for_txt_ssl"],
        fusion_layers=theirs["num_decoder_layers"],
        num_heads=theirs["num_attention_heads"],
        max_tokens=theirs["max_position_embeddings"],
        max_sentences=theirs["type_vocab_size"] - 1,
    )


@pytest.fixture(scope="module")
def state(tribert):
    weights = {key.removeprefix("weights."): value for key, value in tribert.all.items() if key.startswith("weights.")}
    return from_repository(weights)


def part(state, prefix, module):
    module.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    return module.eval()


@pytest.fixture(scope="module")
def text(state, config):
    return part(state, "text.", TriBert(config))


@pytest.fixture(scope="module")
def tokenizer(tribert, config):
    return SentenceTokenizer.for_config(tribert.meta["vocabulary"], config)


@pytest.fixture(scope="module")
def tokens(tribert):
    return {name: tribert.get(name) for name in ("input_ids", "token_type_ids", "attention_mask")}


@pytest.fixture(scope="module")
def memory(tribert, state):
    features = tribert.get("features.region_report")
    return part(state, "adapter.", VisualAdapter(features.shape[1], 32))(features)


def test_all_weights_find_a_place(state, config):
    known = ("text.", "text_words.", "fused_words.", "levels.", "match.", "adapter.", "temperature.value")
    assert all(key.startswith(known) for key in state)


def test_mask(tribert, tokens, config):
    assert torch.equal(visible_tokens(**tokens, config=config).long(), tribert.get("expected.self_attention_mask"))


def test_hidden_states_of_the_text_layers(tribert, text, tokens):
    found = text(**tokens)
    assert len(found) == 4
    for number, states in enumerate(found):
        torch.testing.assert_close(states, tribert.get(f"expected.text.hidden.{number}"), **CLOSE)


def test_attention_maps(tribert, text, tokens, memory):
    visible = text.visible(**tokens)
    embedded = text.embeddings(tokens["input_ids"], tokens["token_type_ids"])
    first = text.layers[0].self_attention.weights(embedded, embedded, visible)
    torch.testing.assert_close(first, tribert.get("expected.text.attention_first_layer"), **CLOSE)
    states = text(**tokens)[-1]
    layer = text.layers[3]
    states = layer.self_attention(states, states, visible)
    cross = layer.cross_attention.weights(states, memory)
    torch.testing.assert_close(cross, tribert.get("expected.full.cross_attention_first"), **CLOSE)


def test_full_run_is_text_then_match(tribert, text, tokens, memory):
    torch.testing.assert_close(memory, tribert.get("expected.visual_memory"), **CLOSE)
    found = text(**tokens, memory=memory, layers="all")
    for number, states in enumerate(found):
        torch.testing.assert_close(states, tribert.get(f"expected.full.hidden.{number}"), **CLOSE)
    fused = text.fuse(text(**tokens)[-1], text.visible(**tokens), memory)
    assert torch.equal(fused, found[-1])
    torch.testing.assert_close(fused, tribert.get("expected.match.last"), **CLOSE)


def test_without_a_volume_the_cross_attention_is_skipped(tribert, text, tokens):
    found = text(**tokens, layers="all")[-1]
    torch.testing.assert_close(found, tribert.get("expected.full_without_memory.last"), **CLOSE)


@pytest.mark.parametrize(
    ("head", "layers", "logits", "loss"),
    [
        ("text_words.", "text", "expected.text.mlm_logits", "expected.text_mlm_loss"),
        ("fused_words.", "all", "expected.full.mlm_logits", "expected.multimodal_mlm_loss"),
    ],
)
def test_masked_words(tribert, state, config, text, tokens, memory, head, layers, logits, loss):
    module = part(state, head, MaskedWordHead(config))
    seen = memory if layers == "all" else None
    plain = text(**tokens, memory=seen, layers=layers)[-1]  # the stored logits are those of the words as they are
    torch.testing.assert_close(module(plain), tribert.get(logits), **CLOSE)
    visible = text.visible(**tokens)
    masked = {**tokens, "input_ids": tribert.get("masked_input_ids")}
    states = text(**masked, memory=seen, layers=layers, visible=visible)[-1]
    found = masked_word_loss(module(states), tribert.get("masked_targets"))
    torch.testing.assert_close(found, tribert.get(loss)[0], **CLOSE)


@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_units(tribert, text, tokens, tokenizer, last, reduction):
    combined = combine_layers(text(**tokens), last, reduction)
    starts = tokenizer.unit_starts(tokens["input_ids"])
    units, _ = sum_units(combined, starts, tokens["attention_mask"])
    torch.testing.assert_close(units, tribert.get(f"expected.units.last{last}.{reduction}"), **CLOSE)


@pytest.fixture(scope="module")
def pooled(text, tokens, tokenizer, config):
    starts = tokenizer.unit_starts(tokens["input_ids"])
    return pool_levels(text(**tokens)[-1], **tokens, unit_starts=starts, config=config)


def test_level_units(tribert, pooled):
    for row in range(4):
        torch.testing.assert_close(pooled.report[row : row + 1], tribert.get(f"expected.report_unit.{row}"), **CLOSE)
        sentences = pooled.sentence[row][pooled.sentence_keep[row]]
        torch.testing.assert_close(sentences, tribert.get(f"expected.sentence_units.{row}"), **CLOSE)
        words = pooled.word[row][pooled.word_keep[row]]
        torch.testing.assert_close(words, tribert.get(f"expected.word_units.{row}"), **CLOSE)


@pytest.fixture(scope="module")
def embeddings(tribert, state, pooled):
    heads = {
        level: part(state, f"levels.{level}.", LevelHead(tribert.get(f"features.region_{level}").shape[1], 32, 20))
        for level in ("report", "sentence", "word")
    }
    regions = {level: tribert.get(f"features.region_{level}").flatten(2).mT for level in heads}
    regions["report"] = regions["report"].mean(1)
    volume = LevelEmbeddings(**{level: head.vision(regions[level]) for level, head in heads.items()})
    found = {level: head.text(getattr(pooled, level)) for level, head in heads.items()}
    return volume, LevelEmbeddings(**found, sentence_keep=pooled.sentence_keep, word_keep=pooled.word_keep)


def test_embeddings_and_losses(tribert, state, embeddings):
    volume, words = embeddings
    torch.testing.assert_close(volume.report, tribert.get("expected.report.image"), **CLOSE)
    torch.testing.assert_close(words.report, tribert.get("expected.report.text"), **CLOSE)
    for level in ("sentence", "word"):
        torch.testing.assert_close(
            getattr(volume, level), tribert.get(f"expected.{level}.regions").flatten(1, 3), **CLOSE
        )
        for row in range(4):
            kept = getattr(words, level)[row][getattr(words, f"{level}_keep")[row]]
            torch.testing.assert_close(kept, tribert.get(f"expected.{level}.tokens.{row}"), **CLOSE)
    found = hierarchical_contrastive_loss(volume, words, temperature=state["temperature.value"])
    for level, loss in found.items():
        torch.testing.assert_close(loss, tribert.get(f"expected.loss.{level}")[0], rtol=1e-4, atol=1e-5)


def test_match(tribert, state, text, tokens, memory, embeddings):
    volume, words = embeddings
    similarity, temperature = report_similarity(volume.report, words.report), state["temperature.value"]
    for scores, name in ((similarity, "volume_to_text"), (similarity.mT, "text_to_volume")):
        torch.testing.assert_close(
            negative_weights(scores, temperature), tribert.get(f"expected.match.weights_{name}"), **CLOSE
        )
    own = torch.arange(4)
    states, visible = text(**tokens)[-1], text.visible(**tokens)
    index = torch.cat([own, tribert.get("match.negative_text_for_volume"), own])
    volumes = torch.cat([own, own, tribert.get("match.negative_volume_for_text")])
    head = part(state, "match.", torch.nn.Linear(32, 2))
    logits = head(text.fuse(states[index], visible[index], memory[volumes])[:, 0])
    expected = tribert.get("expected.match.logits")
    # the order of the two kinds of negatives is not part of the loss
    swapped = torch.cat([expected[:4], expected[8:], expected[4:8]])
    assert torch.allclose(logits, expected, **CLOSE) or torch.allclose(logits, swapped, **CLOSE)
    torch.testing.assert_close(
        match_loss(logits, tribert.get("expected.match.target")), tribert.get("expected.loss.match")[0], **CLOSE
    )


def test_a_report_without_padding(tribert, text, tokenizer, config):
    """The right mask equals that of the same report with one pad behind it; the legacy one repeats the defect."""
    ids, types = tribert.get("full_length.input_ids"), tribert.get("full_length.token_type_ids")
    real = torch.ones_like(ids)
    right, legacy = config, TextConfig(**{**config.__dict__, "legacy_mask": True})
    assert torch.equal(
        visible_tokens(ids, types, real, right).long(), tribert.get("expected.full_length.correct.self_attention_mask")
    )
    wrong = visible_tokens(ids, types, real, legacy)
    assert torch.equal(wrong.long(), tribert.get("expected.full_length.legacy.self_attention_mask"))
    found = text(ids, types, real)[-1]
    torch.testing.assert_close(found, tribert.get("expected.full_length.correct.text_last"), **CLOSE)
    torch.testing.assert_close(
        text(ids, types, real, visible=wrong)[-1], tribert.get("expected.full_length.legacy.text_last"), **CLOSE
    )
    starts = tokenizer.unit_starts(ids)
    units, _ = sum_units(found, starts, real)
    count = tribert.meta["full_length"]["correct_units"]
    assert int(starts.sum()) == count
    torch.testing.assert_close(units[:, :count], tribert.get("expected.full_length.correct.units_last1"), **CLOSE)


def test_legacy_mask_of_one_sentence_restricts_nothing():
    config = TextConfig(vocab_size=20, max_sentences=4, width=8, num_heads=2, legacy_mask=True)
    ids, types = torch.tensor([[2, 16, 5, 6]]), torch.ones(1, 4, dtype=torch.long)
    assert visible_tokens(ids, types, types, config).all()


def test_config_of_the_fixture_builds_a_whole_model(config):
    assert VelvetConfig(text=config).text.first_sentence_id == 110
