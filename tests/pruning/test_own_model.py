"""Pruning our own concatenation model."""

from __future__ import annotations

import pytest
import torch

from mm.backbone import LanguageBackbone
from mm.pruning import FastV, FlowCut, PruMerge, PyramidDrop, RandomPrune, SparseVLM, UniformGrid, VisionZip
from mm.vision import wrap_tower
from mm.vlm import VisionLanguageModel

IMAGE = 60
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
ALL = [
    FlowCut(target_tokens=9),
    FlowCut(target_tokens=9, second_stage="on"),
    FlowCut(target_tokens=9, text_share=0.3),
    FlowCut(target_tokens=9, coverage=0.3),
    VisionZip(target_tokens=9),
    PruMerge(target_tokens=9),
    PruMerge(),
    FastV(target_tokens=9),
    PyramidDrop(target_tokens=9),
    SparseVLM(target_tokens=9),
    RandomPrune(target_tokens=9),
    UniformGrid(target_tokens=9),
]


@pytest.fixture(scope="module", params=["clip", "timm_siglip"])
def model(request, tiny):
    tower = wrap_tower(getattr(tiny, request.param)(), layer=-2)
    backbone = LanguageBackbone.tiny("llama", depth=5, max_positions=1024)
    own = VisionLanguageModel.from_parts(tower, backbone, image_token_id=IMAGE).eval()
    return tiny.widen(own, std=0.15)


def own_ids(tiny, ids):
    """Ids of the shared prompts in this model's small vocabulary."""
    return torch.where(ids == tiny.image, IMAGE, ids % IMAGE)


def batch(tiny, rows=2):
    """One picture in the first prompt, two in the second, right padding; 144 tokens each."""
    inputs = tiny.prompts([[144], [144, 144]][:rows], pad="right")
    inputs["input_ids"] = own_ids(tiny, inputs["input_ids"])
    counts = torch.tensor([1, 2][:rows])
    return {**inputs, "pixel_values": tiny.pictures(int(counts.sum())), "visual_counts": counts}


@torch.no_grad()
@pytest.mark.parametrize("pruner", ALL, ids=lambda pruner: type(pruner).__name__)
def test_generate_and_restore(tiny, model, pruner):
    inputs = batch(tiny)
    expected = model(**inputs).logits
    with pruner.attach(model) as session:
        ids = model.generate(**inputs, max_new_tokens=3, eos_token_id=None, pad_token_id=0)
        pruned = model(**inputs).logits
        counts = session.visual_tokens
    assert ids.shape == (2, 3) and pruned.shape[1] < expected.shape[1]
    if pruner.stage == "encoder" and not pruner.adaptive:
        wanted = 18 if pruner == FlowCut(target_tokens=9, second_stage="on") else 9
        assert counts == [(144, wanted)] * 3
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=0)
    assert not {"forward", "generate"} & set(vars(model))


@torch.no_grad()
def test_everything_kept_is_the_plain_model(tiny, model):
    inputs = batch(tiny)
    expected = model(**inputs).logits
    with FlowCut(target_tokens=144).attach(model):
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("pruner", [ALL[0], ALL[1], ALL[2], ALL[7], ALL[9]], ids=str)
def test_decoding_starts_as_the_forward_pass_ends(tiny, model, pruner):
    """The first generated token is the best one of a forward pass, row by row and padded."""
    inputs = batch(tiny)
    with pruner.attach(model):
        ids = model.generate(**inputs, max_new_tokens=1, eos_token_id=None, pad_token_id=0)
        alone = batch(tiny, rows=1)
        first = model(**{**alone, "pixel_values": inputs["pixel_values"][:1]}).logits[0, -1].argmax()
    assert int(ids[0, 0]) == int(first)


@torch.no_grad()
def test_text_share_follows_the_words(tiny, model):
    """Tokens chosen by the scores stay the same; the others change with the question."""
    inputs = batch(tiny, rows=1)
    inputs["pixel_values"] = inputs["pixel_values"][:1]
    from mm.pruning.text_guided import reselect

    generator = torch.Generator().manual_seed(0)
    candidates = torch.randn(18, 8, generator=generator)
    scores = torch.rand(18, generator=generator)
    best = scores.topk(6).indices
    word = candidates[int(scores.argmin())][None] + 0.01
    chosen = reselect(candidates, scores, word, 9, 1 / 3)
    assert set(best.tolist()) <= set(chosen.tolist()) and int(scores.argmin()) in chosen.tolist() and len(chosen) == 9
    assert reselect(candidates, scores, word[:0], 9, 1 / 3).tolist() == sorted(scores.topk(9).indices.tolist())
    asked = {**inputs, "input_ids": inputs["input_ids"].clone()}
    asked["input_ids"][:, -3:] = torch.tensor([11, 12, 13])
    kept = []
    with FlowCut(target_tokens=9, text_share=0.9).attach(model) as session:
        for call in (inputs, asked):
            found = session.host.pictures(session.pruner, call)
            assert found is not None
            kept.append(found[0][0].features)
    assert kept[0].shape == kept[1].shape == (9, model.backbone.width) and not torch.equal(*kept)


def test_text_only_rows(tiny, model):
    ids = torch.tensor([[1, 5, 6, 7]])
    expected = model(ids).logits
    with FlowCut(target_tokens=9, second_stage="on").attach(model):
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


def test_labels(tiny, model):
    inputs = batch(tiny)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        labels[row, length - 2 : length] = inputs["input_ids"][row, length - 2 : length]
    for pruner in (ALL[0], ALL[1]):
        with pruner.attach(model), torch.no_grad():
            out = model(**inputs, labels=labels)
        assert bool(out.loss.isfinite())
        # alone, without padding, the same loss: mean over 2 + 2 answer tokens
        losses = []
        with pruner.attach(model), torch.no_grad():
            for row, (start, stop) in enumerate(((0, 1), (1, 3))):
                length = int(inputs["attention_mask"][row].sum())
                one = {name: inputs[name][row : row + 1, :length] for name in ("input_ids", "attention_mask")}
                out_one = model(
                    **one,
                    pixel_values=inputs["pixel_values"][start:stop],
                    visual_counts=inputs["visual_counts"][row : row + 1],
                    labels=labels[row : row + 1, :length],
                )
                losses.append(out_one.loss)
        torch.testing.assert_close(out.loss, torch.stack(losses).mean(), **CLOSE)


def test_a_decoder_of_another_build(tiny):
    tower = wrap_tower(tiny.clip(), layer=-2)
    own = VisionLanguageModel.from_parts(tower, LanguageBackbone.tiny("gpt2"), image_token_id=IMAGE).eval()
    with pytest.raises(ValueError, match="GPT2Model cannot be pruned inside: it lacks input_layernorm"):
        with FastV().attach(own):
            pass
    assert not {"forward", "generate"} & set(vars(own))
    with FlowCut(target_tokens=9).attach(own) as session, torch.no_grad():
        inputs = {**tiny.prompts([[144]]), "pixel_values": tiny.pictures(1)}
        inputs["input_ids"] = own_ids(tiny, inputs["input_ids"])
        own(**{name: value[:, -150:] if value.ndim == 2 else value for name, value in inputs.items()})
        assert session.visual_tokens == [(144, 9)]
