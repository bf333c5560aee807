"""The hierarchical loss against its formula in plain loops, and what must not change it."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mm.medical import hierarchical_contrastive_loss
from mm.medical.velvet.config import LocalConfig
from mm.medical.velvet.loss import LevelEmbeddings, masked_word_loss, match_loss, two_way_loss
from mm.medical.velvet.memory import measure


@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(3)
    regions = torch.randn(3, 10, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.randn(3, 6, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    return regions, tokens, torch.arange(6) < torch.tensor([[6], [3], [1]])


def by_loops(regions, tokens, keep, t1=4.0, t2=5.0, t3=10.0):
    """Section "hierarchical contrastive learning" of the paper, one scalar at a time."""
    size = len(regions)
    rows = []
    for volume in regions:
        row = []
        for text, real in zip(tokens, keep, strict=True):
            r, u = F.normalize(volume, dim=-1), F.normalize(text[real], dim=-1)
            beta = torch.stack([torch.stack([a @ b for b in u]).softmax(0) for a in r])  # (S, L)
            terms = []
            for word in range(len(u)):
                alpha = (t1 * beta[:, word]).softmax(0)
                context = sum(weight * region for weight, region in zip(alpha, r, strict=True))
                terms.append(torch.exp(t2 * F.cosine_similarity(context, u[word], dim=0)))
            row.append(t3 * torch.log(sum(terms)))
        rows.append(torch.stack(row))
    scores = torch.stack(rows)
    own = torch.arange(size)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


@pytest.mark.parametrize("impl", ["blocked", "reference"])
def test_equals_the_triple_loop_forward_and_backward(pairs, impl):
    regions, tokens, keep = pairs
    expected = by_loops(regions, tokens, keep)
    wanted = torch.autograd.grad(expected, (regions, tokens))
    sides = LevelEmbeddings(word=regions), LevelEmbeddings(word=tokens, word_keep=keep)
    found = hierarchical_contrastive_loss(*sides, local=LocalConfig(impl=impl))["word"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(found, (regions, tokens)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_order_of_regions_does_not_matter(pairs):
    regions, tokens, keep = pairs
    text = LevelEmbeddings(sentence=tokens, sentence_keep=keep)
    one = hierarchical_contrastive_loss(LevelEmbeddings(sentence=regions), text)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    other = hierarchical_contrastive_loss(LevelEmbeddings(sentence=regions[:, order]), text)
    torch.testing.assert_close(one, other)


def test_padding_of_tokens_does_not_matter(pairs):
    regions, tokens, keep = pairs
    garbage = torch.cat([tokens, 100 * torch.ones(3, 4, 5, dtype=torch.float64)], dim=1)
    longer = torch.cat([keep, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    volume = LevelEmbeddings(word=regions)
    one = hierarchical_contrastive_loss(volume, LevelEmbeddings(word=tokens, word_keep=keep))
    other = hierarchical_contrastive_loss(volume, LevelEmbeddings(word=garbage, word_keep=longer))
    torch.testing.assert_close(one, other)


def test_a_text_without_tokens_is_left_out(pairs):
    regions, tokens, keep = pairs
    gone = keep.clone()
    gone[1] = False
    volume, text = LevelEmbeddings(word=regions), LevelEmbeddings(word=tokens, word_keep=gone)
    found = hierarchical_contrastive_loss(volume, text)["word"]
    rest = torch.tensor([0, 2])
    alone = hierarchical_contrastive_loss(
        LevelEmbeddings(word=regions[rest]), LevelEmbeddings(word=tokens[rest], word_keep=keep[rest])
    )["word"]
    torch.testing.assert_close(found, alone)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(found, (regions, tokens)))
    nothing = LevelEmbeddings(word=tokens, word_keep=torch.zeros_like(keep))
    assert hierarchical_contrastive_loss(volume, nothing)["word"] == 0


def test_equal_reports_share_the_target():
    scores = torch.tensor([[9.0, 4.0, 0.0], [4.0, 9.0, 0.0], [0.0, 0.0, 4.0]])
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    logs = scores.log_softmax(1)
    expected = -((logs[0, 0] + logs[0, 1]) / 2 + (logs[1, 0] + logs[1, 1]) / 2 + logs[2, 2]) / 3
    torch.testing.assert_close(two_way_loss(scores, positives=same), expected)  # symmetric: columns give the same
    assert not torch.isclose(two_way_loss(scores), expected)


def test_levels_must_meet():
    two = LevelEmbeddings(report=torch.ones(2, 3))
    with pytest.raises(ValueError, match="no common level"):
        hierarchical_contrastive_loss(two, LevelEmbeddings(word=torch.ones(2, 1, 3)))
    with pytest.raises(ValueError, match="must come in pairs, got 2 and 3"):
        hierarchical_contrastive_loss(two, LevelEmbeddings(report=torch.ones(3, 3)))


def test_losses_of_nothing_are_zero_and_differentiable():
    logits = torch.randn(2, 3, 7, requires_grad=True)
    loss = masked_word_loss(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss == 0 and not logits.grad.any()
    assert match_loss(torch.randn(2, 2), torch.tensor([-100, -100])) == 0


def test_half_precision_inputs_are_summed_in_float32(pairs):
    regions, tokens, keep = pairs
    regions, tokens = regions.bfloat16(), tokens.bfloat16()
    text = LevelEmbeddings(word=tokens, word_keep=keep, report=tokens[:, 0])
    found = hierarchical_contrastive_loss(LevelEmbeddings(word=regions, report=regions[:, 0]), text)
    assert all(value.dtype == torch.float32 for value in found.values())


def test_memory_is_a_tenth_of_all_pairs_at_once(monkeypatch):
    """The published size, shrunk evenly in pairs, tokens and regions; the block shrinks with it."""
    monkeypatch.setattr("mm.kernels.contrastive.BLOCK_BYTES", {"cpu": 1, "cuda": 1})
    streamed, dense = (measure(6, 40, 256, 8, impl)["peak_mib"] for impl in ("blocked", "reference"))
    assert streamed < dense / 10


@pytest.mark.slow
def test_memory_at_the_published_size():
    streamed, dense = (measure(10, 510, 1728, 64, impl)["peak_mib"] for impl in ("blocked", "reference"))
    assert dense > 350 and streamed < dense / 10


def test_uninformed_loss_is_the_logarithm_of_the_batch():
    volume = LevelEmbeddings(report=torch.ones(8, 4), word=torch.ones(8, 5, 4))
    found = hierarchical_contrastive_loss(volume, LevelEmbeddings(report=torch.ones(8, 4), word=torch.ones(8, 3, 4)))
    for value in found.values():
        assert value.item() == pytest.approx(math.log(8), rel=1e-5)
