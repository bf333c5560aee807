"""Isolation of facets, independence of the batch, positions, and every way to say the same mask."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from mm.backbone import LanguageBackbone
from mm.encoders.flame import OFFICIAL, FacetTemplate, FacetTextEncoder
from mm.encoders.flame.facets import collate, facet_mask, facet_positions, facet_slots
from tests.encoders.flame.conftest import relative

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def rephrased(number: int, phrase: str) -> dict[str, FacetTemplate]:
    """The official templates with another phrase in facet `number` (from 1) of the long one."""
    facets = list(OFFICIAL["long"].facets)
    facets[number - 1] = phrase
    return {**OFFICIAL, "long": replace(OFFICIAL["long"], facets=tuple(facets))}


@pytest.mark.parametrize("number", [2, 6])
def test_the_text_of_a_facet_reaches_no_other(text, encoder, number):
    """Words of the same length are swapped, so that positions behind them stay."""
    old = OFFICIAL["long"].facets[number - 1]
    new = old.replace(" image", " dog").replace(" the", " a")
    before = encoder().encode(text.captions[:1])[0]
    after = encoder(templates=rephrased(number, new)).encode(text.captions[:1])[0]
    length = {
        len(encoder(templates=t).rows(text.captions[:1])[0].input_ids) for t in (OFFICIAL, rephrased(number, new))
    }
    unchanged = [k for k in range(7) if k != number - 1 and (k < number or len(length) == 1)]
    assert torch.equal(before[unchanged], after[unchanged])
    assert relative(after[number - 1], before[number - 1]) > 1e-2


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_each_caption_alone(text, encoder, side):
    built = encoder(padding_side=side)
    together = built.encode(text.captions)
    for row, caption in zip(together, text.captions, strict=True):
        assert relative(row, built.encode([caption])[0]) < 1e-5


@pytest.mark.parametrize("compat", ["official", "causal_pad"])
def test_the_published_padding_rules_depend_on_the_batch(text, compat):
    """That they fail here shows that the test above can fail; without padding they are right."""
    model = copy.deepcopy(text.model)
    model.set_attn_implementation("eager")
    built = FacetTextEncoder(model, text.tokenizer, layer=text.layer, compat=compat)
    assert relative(built.encode(text.captions[:1])[0], text.tensors["expected.multi.0"]) < 1e-5
    assert relative(built.encode(text.captions)[0], text.tensors["expected.multi.0"]) > 0.1


def alone(built, row, number, positions):
    """Prefix and one facet in an ordinary causal pass, at given positions."""
    keep = [i for i, k in enumerate(row.facet_ids) if k in (0, number)]
    ids = torch.tensor([[row.input_ids[i] for i in keep]])
    with torch.no_grad():
        return built.backbone.hidden_states(ids, layer=4, positions=positions[:, keep])[0, -1]


@pytest.mark.parametrize("number", [1, 2, 7])
def test_a_facet_equals_its_own_pass_that_keeps_the_gap(text, encoder, number):
    built = encoder()
    (row,) = built.rows(text.captions[:1])
    found = built.encode(text.captions[:1])[0, number - 1]
    gapped = torch.arange(len(row.input_ids))[None]
    assert relative(found, alone(built, row, number, gapped)) < 1e-5
    contiguous = alone(built, row, number, facet_positions(collate([row], 0).facet_ids, "reset"))
    assert (relative(found, contiguous) > 1e-2) == (number > 1)


@pytest.mark.parametrize("number", [1, 2, 7])
@pytest.mark.parametrize("sharing", ["mask", "fork"])
def test_with_reset_positions_a_facet_equals_the_ordinary_pass(text, encoder, number, sharing):
    built = encoder(positions="reset", sharing=sharing)
    (row,) = built.rows(text.captions[:1])
    keep = [i for i, k in enumerate(row.facet_ids) if k in (0, number)]
    with torch.no_grad():
        plain = text.model(torch.tensor([[row.input_ids[i] for i in keep]]), output_hidden_states=True)
    assert relative(built.encode(text.captions)[0, number - 1], plain.hidden_states[4][0, -1]) < 1e-5


@pytest.mark.parametrize("positions", ["consecutive", "reset"])
def test_the_fork_equals_the_masked_pass(text, encoder, positions):
    masked = encoder(positions=positions).encode(text.captions)
    assert relative(encoder(positions=positions, sharing="fork").encode(text.captions), masked) < 1e-5


def test_every_attention_implementation_gives_the_same(text):
    """Boolean, additive and block masks; early exit, a hook, and the full pass."""
    found = {}
    for name in ("sdpa", "eager", "flex_attention"):
        model = copy.deepcopy(text.model)
        model.set_attn_implementation(name)
        built = FacetTextEncoder(model, text.tokenizer, layer=text.layer)
        with torch.compiler.set_stance("force_eager"):  # compiling flex attention takes half a minute
            found[name] = built.encode(text.captions)
    assert relative(found["eager"], found["sdpa"]) < 1e-5
    assert relative(found["flex_attention"], found["sdpa"]) < 1e-5


def test_a_block_mask_from_facet_ids_gives_the_same(text, encoder):
    built = encoder()
    batch = collate(built.rows(text.captions), 0, "left")
    facets = batch.facet_ids

    def allowed(b, h, q, k):
        asks, key = facets[b, q], facets[b, k]
        return ((k <= q) & (asks >= 0) & (key >= 0) & ((key == 0) | (key == asks))) | ((q == k) & (asks < 0))

    length = facets.shape[1]
    blocks = create_block_mask(allowed, len(facets), None, length, length, device="cpu")
    model = copy.deepcopy(text.model)
    model.set_attn_implementation("flex_attention")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        hidden = LanguageBackbone(model).hidden_states(
            batch.input_ids, layer=4, attention=blocks, positions=facet_positions(facets)
        )
    found = hidden.gather(1, facet_slots(facets, 7)[..., None].expand(-1, -1, 64))
    assert relative(found, built.encode(text.captions)) < 1e-5


def test_early_exit_equals_a_hook_and_the_full_pass(text, encoder):
    built = encoder()
    (row,) = built.rows(text.captions[:1])
    batch = collate([row], 0)
    mask, positions = facet_mask(batch.facet_ids), facet_positions(batch.facet_ids)
    hooked = []
    hook = text.model.model.layers[3].register_forward_hook(lambda m, i, out: hooked.append(out))
    with torch.no_grad():
        full = text.model(batch.input_ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    hook.remove()
    slots = facet_slots(batch.facet_ids, 7)[0]
    found = built.encode(text.captions[:1])[0]
    hooked_hidden = hooked[0][0] if isinstance(hooked[0], tuple) else hooked[0]
    assert relative(full.hidden_states[4][0, slots], found) < 1e-5
    assert relative(hooked_hidden.reshape(-1, 64)[slots], found) < 1e-5


def test_one_facet_without_mask_is_the_plain_model(text, encoder):
    built = encoder()
    rows = built.rows(text.captions, "single")
    batch = collate(rows, 0, "left")
    real = batch.facet_ids >= 0
    with torch.no_grad():
        plain = text.model(
            batch.input_ids,
            attention_mask=real.long(),
            position_ids=facet_positions(batch.facet_ids),
            output_hidden_states=True,
        )
    assert relative(plain.hidden_states[4][:, -1], built.encode(text.captions, "single")[:, 0]) < 1e-5


def test_the_prefix_does_not_see_the_facets(encoder, text):
    built = encoder()
    (row,) = built.rows(text.captions[:1])
    batch = collate([row], 0)
    prefix = row.facet_ids.count(0)
    with torch.no_grad():
        mask, positions = facet_mask(batch.facet_ids), facet_positions(batch.facet_ids)
        whole = built.backbone.hidden_states(batch.input_ids, layer=4, attention=mask, positions=positions)
        short = built.backbone.hidden_states(batch.input_ids[:, :prefix], layer=4)
    assert relative(whole[:, :prefix], short) < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_keys_per_row_of_the_mask(encoder, text, side):
    """A token of facet k sees the prefix and its own span up to itself; padding sees itself only, nobody sees it."""
    batch = collate(encoder().rows(text.captions), 0, side)
    seen = facet_mask(batch.facet_ids)[:, 0]
    for facets, allowed in zip(batch.facet_ids, seen, strict=True):
        prefix = int((facets == 0).sum())
        inside = dict.fromkeys(range(-1, 8), 0)
        for place, k in enumerate(facets.tolist()):
            inside[k] += 1
            expected = 1 if k < 0 else inside[k] + (prefix if k else 0)
            assert int(allowed[place].sum()) == expected
            assert k >= 0 or int(allowed[:, place].sum()) == 1


def test_several_layers_are_averaged(text, encoder):
    hooks = [len(block._forward_hooks) for block in text.model.model.layers]
    each = torch.stack([encoder(layer=k).encode(text.captions) for k in (3, 4)])
    assert relative(encoder(layer="3_4").encode(text.captions), each.mean(dim=0)) < 1e-5
    assert hooks == [len(block._forward_hooks) for block in text.model.model.layers], "hooks are removed"


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "gpt2", "qwen3"])
def test_a_batch_equals_its_rows_in_other_families(family, text):
    """Sliding windows (Mistral: 8 keys, Gemma 3: every other block) and learned positions included."""
    backbone = LanguageBackbone.tiny(family, vocab_size=398, max_positions=512)
    for side in ("left", "right"):
        built = FacetTextEncoder(backbone, text.tokenizer, layer=3, padding_side=side)
        together = built.encode(text.captions[:2])
        for row, caption in zip(together, text.captions, strict=False):
            assert relative(row, built.encode([caption])[0]) < 1e-5


def test_a_sliding_window_is_kept(text):
    """A window of 8 keys: facet 1 of a model that sees everything differs, and reset equals the plain windowed pass."""
    backbone = LanguageBackbone.tiny("mistral", vocab_size=398, max_positions=512)
    built = FacetTextEncoder(backbone, text.tokenizer, layer=3, positions="reset")
    (row,) = built.rows(text.captions[:1])
    keep = [i for i, k in enumerate(row.facet_ids) if k in (0, 5)]
    with torch.no_grad():
        plain = backbone.hidden_states(torch.tensor([[row.input_ids[i] for i in keep]]), layer=3)[0, -1]
    assert relative(built.encode(text.captions[:1])[0, 4], plain) < 1e-5


def test_the_tower_is_frozen_and_stays_in_evaluation_mode(text, encoder):
    built = encoder()
    built.train()
    assert not built.training and not any(module.training for module in built.modules())
    assert not any(parameter.requires_grad for parameter in built.parameters())
    assert not built.encode(text.captions[:1]).requires_grad
