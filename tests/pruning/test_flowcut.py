"""FlowCut inside an encoder: what must hold whatever the weights are."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from mm.pruning import FlowCut
from mm.pruning.flowcut import coverage_counts
from mm.pruning.schedule import cut_layers
from mm.pruning.scores import entropy_ratio

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def clip(tiny):
    return tiny.clip()


@pytest.fixture(scope="module")
def pixel_values(tiny):
    return tiny.pictures(3)


@torch.no_grad()
@pytest.mark.parametrize("target", [144, 145, 10_000])
def test_a_target_beyond_the_tokens_changes_nothing(clip, pixel_values, target):
    out = FlowCut(target_tokens=target).encode(clip, pixel_values)
    expected = clip(pixel_values, output_hidden_states=True).hidden_states[-2][:, 1:]
    torch.testing.assert_close(out.tokens, expected, rtol=0, atol=0)
    assert torch.equal(out.keep_indices, torch.arange(144).expand(3, 144))
    assert bool((out.tokens_per_layer == 144).all()) and bool((out.last_block == 5).all())


@torch.no_grad()
def test_uniform_attention_leaves_the_work_to_the_last_cut(tiny, pixel_values):
    """With zero queries every layer looks everywhere: r = 1 drops nothing, then the running score decides at once."""
    tower = tiny.clip()
    for block in tower.encoder.layers:
        block.self_attn.q_proj.weight.zero_()
        block.self_attn.q_proj.bias.zero_()
    out = FlowCut(target_tokens=20).encode(tower, pixel_values)
    assert out.tokens_per_layer[0].tolist() == [144] * 4 + [20] * 2
    hidden = tower(pixel_values, output_hidden_states=True).hidden_states
    running = None
    for layer in range(4):
        attention = tower.encoder.layers[layer].self_attn
        value = attention.v_proj(tower.encoder.layers[layer].layer_norm1(hidden[layer])).unflatten(2, (4, 8))
        similarity = torch.einsum("bhd,bnhd->bhn", value[:, 0], value).softmax(-1).mean(1)[:, 1:]
        semantic = similarity / similarity.sum(1, keepdim=True)
        instant = (1 / 144 + semantic) * value[:, 1:].mean(2).abs().sum(-1)
        running = instant if running is None else 0.5 * running + 0.5 * instant
    expected = running.topk(20).indices.sort().values
    assert torch.equal(out.keep_indices, expected)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["per_sample", "max"])
def test_pruned_run_equals_masked_run(clip, pixel_values, mode):
    """Dropping a token is the same as hiding it, as a key, from the next block on."""
    out = FlowCut(target_tokens=16, batch_mode=mode).encode(clip, pixel_values)
    hidden = clip.pre_layrnorm(clip.embeddings(pixel_values))
    for layer, block in enumerate(clip.encoder.layers[:5]):
        visible = torch.cat([torch.ones(3, 1, dtype=torch.bool), out.last_block >= layer], dim=1)
        hidden = block(hidden, attention_mask=visible[:, None, None].expand(-1, -1, 145, -1))
        assert torch.equal((out.last_block >= layer).sum(1), out.tokens_per_layer[:, layer])
    kept = hidden[:, 1:].gather(1, out.keep_indices[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(out.tokens, kept, **CLOSE)


@torch.no_grad()
def test_equals_eager_attention(tiny, pixel_values):
    """The library's own eager maps give the same first drop as our one row beside fused attention."""
    eager = tiny.clip()
    eager.set_attn_implementation("eager")
    maps = eager(pixel_values, output_attentions=True, output_hidden_states=True)
    row = maps.attentions[1][:, :, 0].mean(1)[:, 1:]
    ratio = entropy_ratio(row / row.sum(1, keepdim=True))
    dropped = torch.round((144 - 16) / math.sqrt(2) * (1 - ratio**2))
    out = FlowCut(target_tokens=16).encode(tiny.clip(), pixel_values)
    assert torch.equal(out.tokens_per_layer[:, 2], (144 - dropped).long())


@torch.no_grad()
def test_patch_order_does_not_matter(tiny, pixel_values):
    """Shuffle patches together with their positions: the same patches survive."""
    tower, shuffled = tiny.clip(), tiny.clip()
    order = torch.randperm(144, generator=torch.Generator().manual_seed(3))
    table = shuffled.embeddings.position_embedding.weight
    table[1:] = table[1:][order].clone()
    patches = F.unfold(pixel_values, 4, stride=4)[:, :, order]
    mixed = F.fold(patches, (48, 48), 4, stride=4)
    plain = FlowCut(target_tokens=24).encode(tower, pixel_values).keep_indices
    moved = order[FlowCut(target_tokens=24).encode(shuffled, mixed).keep_indices].sort(dim=1).values
    assert torch.equal(plain, moved)


@torch.no_grad()
def test_batch_equals_alone_and_the_maximum_rule_does_not(clip, pixel_values):
    pruner = FlowCut(target_tokens=16)
    batch = pruner.encode(clip, pixel_values)
    alone = [pruner.encode(clip, picture[None]) for picture in pixel_values]
    for row, single in enumerate(alone):
        assert torch.equal(batch.keep_indices[row], single.keep_indices[0])
        assert torch.equal(batch.tokens_per_layer[row], single.tokens_per_layer[0])
        torch.testing.assert_close(batch.tokens[row], single.tokens[0], **CLOSE)
    together = FlowCut(target_tokens=16, batch_mode="max").encode(clip, pixel_values)
    first = torch.stack([single.tokens_per_layer[0] for single in alone])
    cut = cut_layers(3, 2)[0] + 1
    assert bool((together.tokens_per_layer[:, cut] == first[:, cut].min()).all())
    assert len(set(first[:, cut].tolist())) > 1  # otherwise this test shows nothing


@torch.no_grad()
@pytest.mark.parametrize("guide_tower", ["clip", "siglip", "dinov2"])
def test_tokens_really_leave_while_the_encoder_runs(tiny, pixel_values, guide_tower):
    tower, seen = getattr(tiny, guide_tower)(), []
    blocks = tower.encoder.layers if hasattr(tower, "encoder") else tower.blocks
    hooks = [block.mlp.register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[1])) for block in blocks]
    out = FlowCut(target_tokens=10, interval=1).encode(tower, pixel_values[:1])
    for hook in hooks:
        hook.remove()
    prefix = {"clip": 1, "siglip": 0, "dinov2": 5}[guide_tower]
    assert [count - prefix for count in seen] == out.tokens_per_layer[0, :-1].tolist()
    assert len(set(seen)) > 2


@torch.no_grad()
def test_mean_guide_of_siglip(tiny, pixel_values):
    """Without rotation the mean of the queries is the query of the mean."""
    tower = tiny.siglip()
    block = tower.encoder.layers[0]
    normed = block.layer_norm1(tower.embeddings(pixel_values))
    split = lambda x: x.unflatten(-1, (4, 8))  # noqa: E731
    rater, key = split(block.self_attn.q_proj(normed.mean(1))), split(block.self_attn.k_proj(normed))
    row = (torch.einsum("bhd,bnhd->bhn", rater, key) / math.sqrt(8)).softmax(-1).mean(1)
    out = FlowCut(target_tokens=12, criteria=("attention",), stop_layer=0).encode(tower, pixel_values)
    assert torch.equal(out.keep_indices, row.topk(12).indices.sort().values)
    torch.testing.assert_close(out.scores, row)


@torch.no_grad()
def test_every_option_changes_something(clip, pixel_values):
    base = FlowCut(target_tokens=24)
    plain = base.encode(clip, pixel_values)
    for change in (
        {"ema": 0.9},
        {"interval": 1},
        {"schedule": "last"},
        {"schedule": "uniform"},
        {"guide": "mean"},
        {"criteria": ("attention",)},
        {"semantic_scale": "sqrt"},
        {"density": "full"},
        {"stop_layer": 1},
        {"merge_dropped": True},
        {"coverage": 0.05},
    ):
        out = replace(base, **change).encode(clip, pixel_values)
        assert out.tokens.shape != plain.tokens.shape or not torch.equal(out.tokens, plain.tokens), change


@torch.no_grad()
def test_official_qwen_switches(tiny):
    tower = tiny.qwen("2")
    inputs = dict(zip(("pixel_values", "image_grid_thw"), tiny.qwen_patches([(8, 8)]), strict=True))
    plain = FlowCut(target_tokens=4).encode(tower, **inputs)
    official = FlowCut(target_tokens=4, official_qwen=True).encode(tower, **inputs)
    assert not torch.equal(plain.scores, official.scores)
    patches = FlowCut(target_tokens=4, qwen_merge="patch").encode(tower, **inputs)
    assert patches.keep_indices.shape == (1, 16) and patches.tokens.shape == (1, 4, 24)


@torch.no_grad()
def test_fixed_schedule_is_calibrated_and_one_graph(clip, pixel_values):
    fixed = FlowCut(target_tokens=16).calibrate(clip, [pixel_values[:2], pixel_values[2:]], multiple=8)
    mean = FlowCut(target_tokens=16).encode(clip, pixel_values).tokens_per_layer[:, 2].float().mean()
    assert fixed.schedule == "fixed" and fixed.counts[0] == -(-round(float(mean)) // 8) * 8 and fixed.counts[-1] == 16
    out = fixed.encode(clip, pixel_values)
    # fullgraph: any reading back from the device would break the graph and raise
    compiled = torch.compile(lambda pixels: fixed.encode(clip, pixels), backend="eager", fullgraph=True)
    again = compiled(pixel_values)
    assert torch.equal(out.keep_indices, again.keep_indices)
    torch.testing.assert_close(out.tokens, again.tokens)


@torch.no_grad()
def test_budget_by_coverage(clip, pixel_values):
    out = FlowCut(target_tokens=40, coverage=0.6, schedule="last").encode(clip, pixel_values)
    counts = out.tokens_per_layer[:, -1]
    assert torch.equal(counts, coverage_counts(out.scores, None, 0.6).clamp(max=40))
    assert out.keep is None or torch.equal(out.keep.sum(1), counts)
    for row, count in enumerate(counts.tolist()):
        share = out.scores[row] / out.scores[row].sum()
        kept = share[out.keep_indices[row, :count]].sum()
        assert count == 40 or (kept >= 0.6 > kept - share[out.keep_indices[row, :count]].min())


@torch.no_grad()
def test_merging_keeps_the_weighted_sum(clip, pixel_values):
    """One cut, everything folded into the survivors: score-weighted totals before and after are equal."""
    plain = FlowCut(target_tokens=16, schedule="last", stop_layer=4)
    merged = replace(plain, merge_dropped=True).encode(clip, pixel_values)
    everything = FlowCut(target_tokens=10**4).encode(clip, pixel_values).tokens
    scores = merged.scores
    assert torch.equal(merged.keep_indices, plain.encode(clip, pixel_values).keep_indices)
    before = (everything * scores[..., None]).sum(1)
    # a survivor's weight is the score of all that was folded into it; find the weights by least squares
    for row in range(3):
        weights = torch.linalg.lstsq(merged.tokens[row].T.double(), before[row][:, None].double()).solution[:, 0]
        assert abs(float(weights.sum() - scores[row].sum())) < 1e-3 * float(scores[row].sum()) or len(weights) > 16
        torch.testing.assert_close(merged.tokens[row].T.double() @ weights, before[row].double(), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_ties_keep_the_lower_index():
    from mm.pruning.ragged import best_columns

    columns, _ = best_columns(torch.tensor([[1.0, 2, 2, 2, 1]]), torch.tensor([2]), 2)
    assert columns.tolist() == [[1, 2]]


def test_not_a_number_is_reported(clip, pixel_values):
    broken = pixel_values.clone()
    broken[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="scores behind block 1 are not finite"):
        FlowCut(target_tokens=16).encode(clip, broken)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_tokens": 0}, "target_tokens must be a whole number of at least 1, got 0"),
        ({"target_tokens": -3}, "got -3"),
        ({"target_tokens": 6.5}, "got 6.5"),
        ({"ema": 1.2}, "ema must lie in 0..1"),
        ({"interval": 0}, "interval must be at least 1"),
        ({"schedule": "fixed"}, "belong together"),
        ({"coverage": 0.0}, "coverage must lie in"),
        ({"criteria": ("cls",)}, "criteria must be some of"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FlowCut(**options)


def test_bad_inputs(clip, tiny, pixel_values):
    with pytest.raises(ValueError, match="holds no pictures"):
        FlowCut(target_tokens=4).encode(clip, pixel_values[:0])
    with pytest.raises(ValueError, match="targets lists 2 numbers for 3 pictures"):
        FlowCut().encode(clip, pixel_values, targets=[4, 4])
    with pytest.raises(ValueError, match="this encoder has no class token"):
        FlowCut(target_tokens=4, guide="cls").encode(tiny.siglip(), pixel_values)
    with pytest.raises(ValueError, match="the last cut follows block 9, but 5 blocks run"):
        FlowCut(target_tokens=4, stop_layer=9).encode(clip, pixel_values)


@torch.no_grad()
def test_different_targets_in_one_batch(clip, pixel_values):
    out = FlowCut().encode(clip, pixel_values, targets=[8, 20, 200])
    assert out.tokens_per_layer[:, -1].tolist() == [8, 20, 144]
    alone = FlowCut(target_tokens=20).encode(clip, pixel_values[1:2])
    assert torch.equal(out.keep_indices[1][out.keep[1]], alone.keep_indices[0])
    torch.testing.assert_close(out.tokens[1][out.keep[1]], alone.tokens[0], **CLOSE)


@torch.no_grad()
def test_wall_time_falls(tiny):
    """576 patches, a wide tower: fewer tokens must cost less time."""
    tower = tiny.clip(hidden_size=128, intermediate_size=512, num_hidden_layers=8, image_size=96)
    pixel_values = tiny.pictures(2, 96)
    pruner = FlowCut(target_tokens=32, schedule="uniform")

    def seconds(target):
        best = 1e9
        for _ in range(4):
            start = time.perf_counter()
            replace(pruner, target_tokens=target).encode(tower, pixel_values)
            best = min(best, time.perf_counter() - start)
        return best

    seconds(32)
    assert seconds(32) < 0.8 * seconds(576)
