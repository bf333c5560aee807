"""Methods inside the language model, each against eager attention maps read in plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from mm.pruning import FastV, FlowCut, PruMerge, PyramidDrop, RandomPrune, SparseVLM, UniformGrid, VisionZip
from mm.pruning.peers.language_peer import average_per_block, geometric_counts, scaled_blocks
from mm.pruning.peers.sparsevlm import density_peaks, group_count

LANGUAGE = [FastV(target_tokens=9), PyramidDrop(target_tokens=8), SparseVLM(target_tokens=8)]
ALL = [
    *LANGUAGE,
    VisionZip(target_tokens=9),
    PruMerge(target_tokens=9),
    PruMerge(),
    RandomPrune(target_tokens=9),
    UniformGrid(target_tokens=9),
    FlowCut(target_tokens=9, second_stage="on"),
    FlowCut(target_tokens=9, second_stage="on", coverage=0.5, merge_dropped=True),
]
VLMS = ["llava", "next", "onevision", "qwen2", "qwen2.5"]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@torch.no_grad()
@pytest.mark.parametrize("pruner", ALL, ids=lambda pruner: type(pruner).__name__)
@pytest.mark.parametrize("name", VLMS)
def test_generate_under_every_method(tiny, name, pruner):
    model, inputs = tiny.vlm(name), tiny.inputs(name)
    with pruner.attach(model) as session:
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        per_block = session.language.visual_per_block() if session.language else []
    assert torch.equal(out[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    assert not model._forward_pre_hooks and "generate" not in vars(model)
    if pruner in LANGUAGE:
        pictures = 2
        assert per_block[0] == int((inputs["input_ids"] == tiny.image).sum())
        assert per_block[-1] == pruner.target_tokens * pictures
        assert per_block == sorted(per_block, reverse=True)


@torch.no_grad()
@pytest.mark.parametrize("pruner", LANGUAGE, ids=lambda pruner: type(pruner).__name__)
def test_cached_decoding_equals_one_pass(tiny, pruner):
    """The answer's first token comes from the prompt's pass, the others from caches of unequal length."""
    model, inputs = tiny.vlm("llava"), tiny.inputs("llava")
    with pruner.attach(model) as session:
        out = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        frozen = [behind.selection for behind in session.language.last.behind]
    lengths = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert lengths[0] > lengths[-1]
    answer = out.sequences[:, inputs["input_ids"].shape[1] :]
    longer = {**inputs, "input_ids": out.sequences[:, :-1]}
    longer["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(answer[:, :-1])], dim=1)
    with pruner.attach(model) as session:
        session.language.stage = Frozen(session.language.stage, frozen)
        full = model(**longer, use_cache=False).logits
    for step in range(3):
        torch.testing.assert_close(out.logits[step], full[:, step - 3], **CLOSE)


class Frozen:
    """Repeats recorded selections for a prompt that has become longer."""

    def __init__(self, stage, selections):
        self.stage, self.selections = stage, selections

    def begin(self, prompt, embedded):
        return prompt

    def select(self, cut, block, prompt, first):
        from mm.pruning.llm_stage import Selection

        recorded = self.selections[cut.number]
        more = prompt.picture.shape[1] - recorded.keep.shape[1]
        keep = torch.cat([recorded.keep, recorded.keep.new_ones(len(recorded.keep), more)], dim=1)
        if recorded.home is None:
            return Selection(keep)
        return Selection(keep, torch.cat([recorded.home, recorded.home.new_full((len(keep), more), -1)], dim=1))


def eager_maps(tiny, inputs):
    model = tiny.llava()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(**inputs, output_attentions=True, output_hidden_states=True, return_dict=True)


@torch.no_grad()
def test_fastv_oracle(tiny):
    inputs = tiny.inputs("llava", batch=2)
    row = eager_maps(tiny, inputs).attentions[1][:, :, -1].mean(1)
    with FastV(target_tokens=9).attach(tiny.llava()) as session:
        session.host.vlm(**inputs)
        keep = session.language.last.behind[0].selection.keep
    for b in range(2):
        image = (inputs["input_ids"][b] == tiny.image).nonzero()[:, 0].tolist()
        best = sorted(image, key=lambda j: -float(row[b, j]))[:9]
        assert sorted(best) == [j for j in image if keep[b, j]]
        assert bool(keep[b][inputs["input_ids"][b] != tiny.image].all())


@torch.no_grad()
def test_fastv_equals_masking(tiny):
    """Dropping with positions kept is the published masking: the same logits as hiding those keys behind block 2."""
    model, inputs = tiny.llava(), tiny.inputs("llava", batch=1)
    with FastV(target_tokens=9).attach(model) as session:
        found = model(**inputs).logits[0, -1]
        keep = session.language.last.behind[0].selection.keep

    def hide(_module, args, kwargs):
        mask = torch.ones(keep.shape[1], keep.shape[1], dtype=torch.bool).tril() & keep
        return args, {**kwargs, "attention_mask": mask[None, None]}

    layers = model.model.language_model.layers
    hooks = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers[2:]]
    expected = model(**inputs).logits[0, -1]
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, expected, **CLOSE)


@torch.no_grad()
def test_pyramiddrop_first_cut_oracle(tiny):
    """Rated with the norm and projections of the next block on its input: that block's own eager map."""
    inputs = tiny.inputs("llava", batch=2)
    row = eager_maps(tiny, inputs).attentions[1][:, :, -1].mean(1)  # 5 blocks: cuts in front of 1, 2, 4
    with PyramidDrop(target_tokens=8).attach(tiny.llava()) as session:
        session.host.vlm(**inputs)
        behind = session.language.last.behind
    for b in range(2):
        image = (inputs["input_ids"][b] == tiny.image).nonzero()[:, 0].tolist()
        best = sorted(image, key=lambda j: -float(row[b, j]))[:32]
        assert sorted(best) == [j for j in image if behind[0].selection.keep[b, j]]
    assert [int(state.prompt.visual.sum()) for state in behind] == [64, 32, 16]


@torch.no_grad()
def test_sparsevlm_first_cut_oracle(tiny):
    model, inputs = tiny.llava(), tiny.inputs("llava", batch=2)
    maps = eager_maps(tiny, inputs)
    with SparseVLM(target_tokens=8, recycle=False).attach(model) as session:
        model(**inputs)
        keep = session.language.last.behind[0].selection.keep
    embedded = maps.hidden_states[0]
    for b in range(2):
        ids = inputs["input_ids"][b].tolist()
        image = [j for j, token in enumerate(ids) if token == tiny.image]
        text = list(range(image[-1] + 1, len(ids)))
        relevance = dict.fromkeys(text, 0.0)
        for v in image:
            share = torch.stack([embedded[b, v] @ embedded[b, t] for t in text]).softmax(0)
            for t, value in zip(text, share.tolist(), strict=True):
                relevance[t] += value / len(image)
        mean = sum(relevance.values()) / len(text)
        raters = [t for t in text if relevance[t] > mean]
        assert 0 < len(raters) < len(text)
        score = maps.attentions[0][b, :, raters].mean(dim=(0, 1))  # block 0 scores, 5 blocks: cut in front of 1
        best = sorted(image, key=lambda j: -float(score[j]))[: geometric_counts(64, 8, 3)[0]]
        assert sorted(best) == [j for j in image if keep[b, j]]


@torch.no_grad()
def test_sparsevlm_recycles_sums(tiny):
    model, inputs = tiny.llava(), tiny.inputs("llava", batch=1)
    caught = {}
    layers = model.model.language_model.layers
    with SparseVLM(target_tokens=8).attach(model) as session:
        hooks = [
            layers[0].register_forward_hook(lambda _m, _a, out: caught.update(before=out)),
            layers[1].register_forward_pre_hook(lambda _m, args: caught.update(behind=args[0])),
        ]
        model(**inputs)
        for hook in hooks:
            hook.remove()
        behind = session.language.last.behind[0]
    home, keep = behind.selection.home[0], behind.selection.keep[0]
    groups = set(home[home >= 0].tolist())
    worthy, parts = group_count(64 - 32)
    assert len(groups) == parts and int((home >= 0).sum()) == group_count(64 - 32 + parts)[0] and worthy >= parts
    columns = keep.nonzero()[:, 0].tolist()
    for place, column in enumerate(columns):
        members = (home == column).nonzero()[:, 0] if column in groups else torch.tensor([column])
        torch.testing.assert_close(caught["behind"][0, place], caught["before"][0, members].sum(0), **CLOSE)
    assert int(behind.prompt.visual.sum()) == 32


def test_density_peaks_finds_separate_clouds():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0], [10, 0], [0, 10]])
    points = torch.cat([centre + torch.randn(8, 2, generator=generator) for centre in centres])
    group = density_peaks(points, 3)
    assert all(len(set(group[start : start + 8].tolist())) == 1 for start in (0, 8, 16))
    assert len(set(group.tolist())) == 3
    assert sorted(set(density_peaks(torch.zeros(6, 2), 3).tolist())) == [0, 1, 2]


def test_published_budgets_are_averages():
    assert math.isclose(average_per_block(576, (66, 30, 17), (2, 6, 16), 32), 62.125)
    assert scaled_blocks((2, 6, 16), 32) == [2, 6, 16]
    assert geometric_counts(576, 72, 3) == [288, 144, 72]


@pytest.mark.parametrize("pruner", [FastV(layer=5), PyramidDrop(blocks=(8, 31)), SparseVLM(blocks=(2, 30, 31))])
def test_a_language_model_that_is_too_shallow(tiny, pruner):
    with pytest.raises(ValueError, match=r"drops tokens in front of block \d, this language model has blocks 0..4"):
        with pruner.attach(tiny.vlm("llava")):
            pass


@torch.no_grad()
@pytest.mark.parametrize("pruner", LANGUAGE, ids=lambda pruner: type(pruner).__name__)
def test_batch_equals_alone(tiny, pruner):
    model = tiny.vlm("llava")
    both, alone = tiny.inputs("llava"), tiny.inputs("llava", batch=1)
    with pruner.attach(model):
        torch.testing.assert_close(model(**both).logits[0, -1], model(**alone).logits[0, -1], **CLOSE)


def test_bad_options():
    with pytest.raises(ValueError, match="blocks must rise"):
        PyramidDrop(blocks=(8, 4))
    with pytest.raises(ValueError, match="counts must list one positive number per cut"):
        SparseVLM(counts=(3, 2))
    with pytest.raises(ValueError, match="layer must be a whole number"):
        FastV(layer=0)
