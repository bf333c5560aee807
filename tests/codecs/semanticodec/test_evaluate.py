"""Scores and their controls: conditions are what they say, retrieval and probes can lose, the page fills."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from mm.app.report import Page
from mm.codecs.semanticodec import Sampling, SemantiCodec, evaluate, tiny, tour
from mm.codecs.semanticodec.kmeans import train_codebooks
from mm.codecs.semanticodec.probe import averaged
from mm.codecs.semanticodec.round_trip import round_trip


@pytest.fixture(scope="module")
def codec():
    """Random weights; only the codebooks are clustered, from features of made sounds."""
    config = tiny()
    unet = replace(config.decoder.unet, multipliers=(1, 1), attention_factors=(2,))
    found = SemantiCodec(replace(config, decoder=replace(config.decoder, unet=unet))).eval()
    sounds = evaluate.held_out(found, 7, 96, "train")
    frames = found.bank(sounds["waves"])
    features, keep = found.encoder.features(frames), found.encoder.keep(frames)
    pools = {}
    for number, name in enumerate(config.quantizer.domains):
        rows = sounds["domains"] == number
        pools[name] = lambda x=features[rows][keep[rows]]: [x]
    for codebook in train_codebooks(pools, config.quantizer, start="plusplus", max_steps=10).values():
        found.encoder.semantic.fill(codebook)
    return found


def test_conditions_of_the_comparison(codec):
    encoded = codec.encoder(codec.bank(evaluate.held_out(codec, 0, 4)["waves"]))
    found = evaluate.conditions(encoded)
    assert list(found) == ["unquantized", "tokens", "semantic_only", "shuffled"]
    torch.testing.assert_close(found["tokens"][encoded.keep], codec.embed(encoded.tokens)[encoded.keep])
    assert not found["semantic_only"][..., :128].any()
    assert torch.equal(found["semantic_only"][..., 128:], found["tokens"][..., 128:])
    assert torch.equal(found["shuffled"][1], found["tokens"][0])
    assert torch.equal(
        found["unquantized"][..., 128:][encoded.keep],
        codec.encoder.features(codec.bank(evaluate.held_out(codec, 0, 4)["waves"]))[encoded.keep],
    )


def test_retrieval_wins_with_the_source_and_loses_with_another():
    mels = torch.randn(32, 8, 4, generator=torch.Generator().manual_seed(0))
    assert evaluate.retrieval(mels + 0.01, mels) == 1
    assert evaluate.retrieval(mels.roll(1, 0), mels) < 0.1


def test_semantic_tokens_tell_the_domains_apart(codec):
    found = evaluate.probes(codec, 0, count=120)
    assert found["probe_semantic"] > 0.7
    assert found["probe_shuffled_labels"] < 0.55


def test_averages_leave_padding_out():
    embeddings = torch.tensor([[[1.0], [3.0], [100.0]]])
    tokens = torch.tensor([[[0, 0], [1, 0], [-1, -1]]])
    assert averaged(embeddings, tokens).tolist() == [[2.0]]


def test_the_page_fills(codec, monkeypatch):
    monkeypatch.setattr(tour, "load", lambda name: codec)
    for name, value in {"SCORED": 16, "SHOWN": 1, "MINUTE": 4}.items():
        monkeypatch.setattr(tour, name, value)
    monkeypatch.setattr(tour, "round_trip", lambda codec, wave, sampling: round_trip(codec, wave, Sampling(steps=1)))
    monkeypatch.setattr(tour, "evaluate", partial(evaluate.evaluate, steps=1))
    monkeypatch.setattr(evaluate, "probes", partial(evaluate.probes, count=48))
    page = Page("semanticodec", "SemantiCodec")
    tour.page(page)
    assert [row["decoded from"][:8] for row in page.numbers["controls"]] == [
        "the soun",
        "features",
        "semantic",
        "semantic",
        "tokens o",
    ]
    assert page.numbers["bit_rates"][0]["vocabulary 32768"] == "0.35 kbit/s"
    assert page.body().count("<audio") == 2 and page.body().count("<img") == 2
    single, row = page.numbers["files"]
    assert single["bytes"] == 48 + 32 * 2 + 2
    assert row["seconds"] == 4 * 20_720 / 16_000 and row["bytes"] == 48 + row["token pairs"] * 2 + 2
