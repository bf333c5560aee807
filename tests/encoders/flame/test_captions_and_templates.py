"""Hostile captions, own templates, and messages."""

from __future__ import annotations

import logging

import pytest
import torch

from mm.backbone import LanguageBackbone
from mm.data.text import tiny_tokenizer
from mm.encoders.flame import OFFICIAL, FacetTemplate, FacetTextEncoder
from mm.encoders.flame.caption import clean_captions
from mm.encoders.flame.text import resolve_layers
from tests.encoders.flame.conftest import relative

HOSTILE = {
    "empty": "",
    "blank": "   ",
    "emoji": "a 🦊 under 👩‍👩‍👧‍👦",
    "right to left": "شجرة كبيرة بجانب البيت",
    "quotes": '"""',
    "template": '"x" . After thinking step by step , <s> this image description means in just one word:"',
    "special": "a <s> dog </s> and <unk><<s>s>",
}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("A dog", "A dog."),
        ("A dog.", "A dog."),
        ("A dog?", "A dog."),
        ('say "hi"', "say 'hi'"),
        ("it's'", "it's'"),
        ("", ""),
        ('"""', "'''"),
        ("why?!", "why?!."),
        ("a <s>dog", "a dog."),
    ],
)
def test_cleaning(text, raw, expected):
    assert clean_captions([raw, text.captions[0]], text.tokenizer) == [expected, "A dog runs fast."]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_captions_keep_their_place_in_a_batch(text, encoder, name):
    """Every caption gets seven slots of its own, and its neighbours are not touched."""
    built = encoder()
    captions = [text.captions[0], HOSTILE[name], text.captions[1]]
    found = built.encode(captions)
    assert found.isfinite().all()
    for row, caption in zip(found, captions, strict=True):
        assert relative(row, built.encode([caption])[0]) < 1e-5
    (row,) = built.rows([HOSTILE[name]])
    assert [row.facet_ids.count(k) for k in range(1, 8)] == [11, 15, 18, 15, 18, 16, 14]


def test_a_caption_of_ten_thousand_words_is_cut_and_says_so(text, encoder, caplog):
    caption = "dog " * 10_000
    with caplog.at_level(logging.WARNING):
        (row,) = encoder(max_tokens=100).rows([caption])
    assert "was cut to 100" in caplog.text
    longer = encoder(max_tokens=100).rows([caption + "cat"])[0]
    assert row == longer and 190 < len(row.input_ids) < 225


def test_a_caption_that_just_fits_is_not_cut(text, encoder, caplog):
    tokens = len(text.tokenizer(text.captions[0])["input_ids"])
    with caplog.at_level(logging.WARNING):
        encoder(max_tokens=tokens).rows(text.captions[:1])
    assert not caplog.text


def test_own_templates_and_a_word_level_tokenizer():
    """Slots are found by characters, so that tokens are free: here the closing quote is an unknown word."""
    backbone = LanguageBackbone.tiny("llama", vocab_size=2048, max_positions=512)
    for templates in ("world", OFFICIAL, {"mine": FacetTemplate(before="", after=" ,", facets=(" colour", " shape"))}):
        built = FacetTextEncoder(backbone, tiny_tokenizer(), layer=2, templates=templates)
        name = next(iter(built.templates))
        found = built.encode(["a red ring.", "two large blue stars on a white background."], name)
        assert found.shape == (2, built.facets(name), built.width)
        assert torch.unique(found.flatten(0, 1), dim=0).shape[0] == 2 * built.facets(name)


def test_a_tokenizer_without_begin_token_drops_it():
    template = FacetTemplate(before="", after=" ,", facets=(" {bos} colour", " shape"))
    assert template.render("a ring.").text == "a ring. , colour shape"
    assert template.render("a ring.", "<s>").text == "a ring. , <s> colour shape"


def test_mean_then_norm(text, encoder):
    built = encoder()
    raw = built.encode(text.captions)
    unit = built.encode(text.captions, normalize=True)
    assert relative(unit.norm(dim=-1), torch.ones(3, 7)) < 1e-6
    mean = built.encode(text.captions, reduce="mean", normalize=True)
    assert relative(mean, torch.nn.functional.normalize(raw.mean(dim=1), dim=-1)) < 1e-6
    other = torch.nn.functional.normalize(unit.mean(dim=1), dim=-1)
    assert relative(mean, other) > 1e-3, "the order of mean and norm matters, so it is tested"


def test_no_captions(encoder):
    assert encoder().encode([]).shape == (0, 7, 64)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda e: e().encode("one string"), "list of strings"),
        (lambda e: e().encode(["a", None]), "caption 1 is not a string but NoneType"),
        (lambda e: e().encode(["a"], "longest"), "unknown template 'longest'; there are: long, short, single"),
        (lambda e: e().encode(["a"], reduce="max"), "reduce must be None or 'mean'"),
        (lambda e: e(layer=6), "1..5"),
        (lambda e: e(layer=0), "1..5"),
        (lambda e: e(layer="4_x"), "numbers joined by '_'"),
        (lambda e: e(templates="mine"), "unknown template set 'mine'"),
        (lambda e: e(templates={"a": "b"}), "must map names to FacetTemplate"),
        (lambda e: e(positions="none"), "positions must be one of"),
        (lambda e: e(compat="official"), "set_attn_implementation\\('eager'\\)"),
        (lambda e: e(compat="causal_pad", sharing="fork"), "use sharing='mask'"),
        (lambda e: FacetTemplate(before="", after="", facets=()), "at least one facet"),
        (lambda e: FacetTemplate(before="", after="", facets=("a", " ")), "facet 2 of 2 is empty"),
    ],
)
def test_messages(encoder, act, message):
    with pytest.raises(ValueError, match=message):
        act(encoder)


def test_learned_positions_end_somewhere(text):
    backbone = LanguageBackbone.tiny("gpt2", vocab_size=398, max_positions=150)
    built = FacetTextEncoder(backbone, text.tokenizer, layer=2)
    with pytest.raises(ValueError, match="150 positions; set max_tokens to"):
        built.encode(text.captions)


def test_a_facet_that_is_glued_to_its_neighbour_is_named(text):
    template = {"x": FacetTemplate(before="", after=" ,", facets=(" colour", "s"))}
    built = FacetTextEncoder(text.model, tiny_tokenizer(), layer=2, templates=template)
    with pytest.raises(ValueError, match="facet 2 got no token of its own"):
        built.encode(["a"], "x")


def test_layers():
    assert resolve_layers("38_39", 40) == [38, 39] and resolve_layers([-1], 5) == [5]


def test_the_fingerprint_changes_with_everything_that_changes_embeddings(text, encoder):
    base = encoder().fingerprint()
    assert base == encoder().fingerprint() == encoder(padding_side="right", sharing="fork").fingerprint()
    others = [encoder(layer=3), encoder(positions="reset"), encoder(templates="world"), encoder(max_tokens=77)]
    found = {base, *(other.fingerprint() for other in others)}
    weight = text.model.model.layers[2].mlp.up_proj.weight
    with torch.no_grad():
        weight[5, 7] += 1e-3
        found.add(encoder().fingerprint())
        weight[5, 7] -= 1e-3
    assert len(found) == 6
    later = text.model.model.layers[4].mlp.up_proj.weight
    with torch.no_grad():
        later[0, 0] += 1.0
    assert encoder().fingerprint() == base, "a block that never runs does not count"
    with torch.no_grad():
        later[0, 0] -= 1.0
    tokenizer = tiny_tokenizer()
    assert FacetTextEncoder(text.model, tokenizer, layer=text.layer).fingerprint() not in found
