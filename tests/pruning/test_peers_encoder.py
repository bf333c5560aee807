"""Methods behind the encoder, each against a slow plain reading of its criterion."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm.pruning import PruMerge, RandomPrune, UniformGrid, VisionZip
from mm.pruning.peers.controls import grid_numbers
from mm.pruning.peers.prumerge import outliers

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
METHODS = [RandomPrune, UniformGrid, VisionZip, PruMerge]


@pytest.fixture(scope="module")
def clip(tiny):
    return tiny.clip()


@pytest.fixture(scope="module")
def pixel_values(tiny):
    return tiny.pictures(2)


def layer_tables(clip, pixel_values, layer):
    """Features and per-head q, k of one block as NumPy arrays: x (B, n, D), q and k (B, n, H, d)."""
    with torch.no_grad():
        hidden = clip(pixel_values, output_hidden_states=True).hidden_states
        block = clip.encoder.layers[layer]
        normed = block.layer_norm1(hidden[layer])
        q, k = (project(normed).unflatten(2, (4, 8)) for project in (block.self_attn.q_proj, block.self_attn.k_proj))
    return hidden[-2].numpy(), q.numpy(), k.numpy()


def softmax(row):
    grown = np.exp(row - row.max())
    return grown / grown.sum()


def cosine(a, b):
    return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


@torch.no_grad()
def test_visionzip_oracle(clip, pixel_values):
    features, q, k = layer_tables(clip, pixel_values, 4)
    out = VisionZip(target_tokens=16).encode(clip, pixel_values)  # 1 class + 13 dominant + 2 contextual
    for b in range(2):
        row = sum(softmax(np.array([q[b, 0, h] @ k[b, j, h] for j in range(145)]) / np.sqrt(8)) for h in range(4))[1:]
        dominant = sorted(np.argsort(-row, kind="stable")[:13])
        rest = [j for j in range(144) if j not in dominant]
        step = len(rest) // 2
        anchors = [rest[0], rest[step]]
        keys = k[b, 1:].mean(axis=1)
        groups = {anchor: [] for anchor in anchors}
        for j in rest:
            if j not in anchors:
                groups[max(anchors, key=lambda a: cosine(keys[j], keys[a]))].append(j)
        x = features[b, 1:]
        expected = [features[b, 0], *x[dominant], *(x[a] + x[groups[a]].mean(axis=0) for a in anchors)]
        np.testing.assert_allclose(out.tokens[b].numpy(), np.stack(expected), **CLOSE)
        assert out.keep_indices[b].tolist() == [-1, *dominant, *anchors]


@torch.no_grad()
@pytest.mark.parametrize("target", [None, 9])
def test_prumerge_oracle(clip, pixel_values, target):
    features, q, k = layer_tables(clip, pixel_values, 5)  # the block behind the features
    out = PruMerge(target_tokens=target, neighbours=4).encode(clip, pixel_values)
    for b in range(2):
        query, keys = q[b, 0].reshape(-1), k[b].reshape(145, -1)
        row = softmax(keys @ query / np.sqrt(32))[1:]
        low, high = np.quantile(row, [0.25, 0.75])
        count = int((row > high + 1.5 * (high - low)).sum()) if target is None else target - 1
        kept = sorted(np.argsort(-row, kind="stable")[:count])
        x, expected = features[b, 1:], []
        for i in kept:
            others = sorted((j for j in range(144) if j != i), key=lambda j: -cosine(keys[1 + i], keys[1 + j]))[:4]
            expected.append(x[i] + sum(row[j] * x[j] for j in others))
        expected.append(sum(row[j] * x[j] for j in range(144) if j not in kept))
        found = out.tokens[b] if out.keep is None else out.tokens[b][out.keep[b]]
        np.testing.assert_allclose(found.numpy(), np.stack(expected), **CLOSE)
        assert out.keep_indices[b, : count + 1].tolist() == [*kept, -1]


@torch.no_grad()
def test_prumerge_plus_adds_spaced_tokens(clip, pixel_values):
    plain, plus = PruMerge(target_tokens=21), PruMerge(target_tokens=21, plus=True)
    few, many = (pruner.encode(clip, pixel_values).keep_indices for pruner in (plain, plus))
    assert few.shape == many.shape == (2, 21)
    best = set(plain.encode(clip, pixel_values).scores[0].topk(10).indices.tolist())
    spaced = set(many[0, :-1].tolist()) - best
    assert best < set(many[0].tolist()) and len(spaced) == 10
    assert max(np.diff(sorted(spaced))) <= 144 / 10 * 2


def test_outliers_of_a_flat_row_is_one():
    assert outliers(torch.full((50,), 0.02)) == 1
    assert outliers(torch.cat([torch.linspace(0, 1, 50), torch.tensor([9.0, 8.0])])) == 2


@pytest.mark.parametrize(("height", "width", "count"), [(12, 12, 16), (12, 12, 37), (1, 50, 7), (8, 8, 64), (5, 9, 1)])
def test_the_grid_is_exact_and_even(height, width, count):
    numbers = grid_numbers(height, width, count)
    assert len(set(numbers.tolist())) == count and int(numbers.max()) < height * width
    assert numbers.tolist() == sorted(numbers.tolist())
    rows = torch.bincount(numbers // width, minlength=height)
    used = rows[rows > 0]
    assert int(used.max() - used.min()) <= 1


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tower", ["clip", "siglip", "timm", "open_clip"])
def test_every_method_on_every_encoder(tiny, pixel_values, method, tower):
    model = getattr(tiny, tower)()
    out = method(target_tokens=12).encode(model, pixel_values)
    assert out.tokens.shape == (2, 12, 32) and bool(out.tokens.isfinite().all())
    assert out.tokens_per_layer[:, -1].tolist() == [12, 12] and out.tokens_per_layer[0, 0] == 144
    placed = out.keep_indices[out.keep_indices >= 0]
    assert int(placed.max()) < 144
    full = method(target_tokens=144).encode(model, pixel_values)
    assert torch.equal(full.keep_indices, torch.arange(144).expand(2, 144))


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_qwen_pictures_of_different_size(tiny, method):
    model = tiny.qwen("2.5")
    pixel_values, grid = tiny.qwen_patches([(8, 12), (6, 6)])
    both = method(target_tokens=5).encode(model, pixel_values, image_grid_thw=grid)
    alone = method(target_tokens=5).encode(model, pixel_values[:96], image_grid_thw=grid[:1])
    assert both.tokens.shape == (2, 5, 24)
    assert torch.equal(both.keep_indices[0], alone.keep_indices[0])
    torch.testing.assert_close(both.tokens[0], alone.tokens[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_random_depends_on_its_seed_alone(clip, pixel_values):
    first = RandomPrune(target_tokens=12, seed=3).encode(clip, pixel_values)
    torch.rand(7)
    again = RandomPrune(target_tokens=12, seed=3).encode(clip, pixel_values)
    other = RandomPrune(target_tokens=12, seed=4).encode(clip, pixel_values)
    assert torch.equal(first.keep_indices, again.keep_indices)
    assert not torch.equal(first.keep_indices, other.keep_indices)
    assert not torch.equal(first.keep_indices[0], first.keep_indices[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [0, -1, 2.5])
def test_bad_targets(method, target):
    with pytest.raises(ValueError, match="target_tokens must be a whole number of at least 1"):
        method(target_tokens=target)
