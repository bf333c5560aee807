"""Scores against hand-made cases and torchmetrics."""

import math

import pytest
import torch
import torch.nn.functional as F

from mm.metrics.scores import accuracy, exact_match, perplexity, recall_at_k, token_nll


def test_exact_match_forgives_case_space_and_full_stop_only():
    assert exact_match(["A  dog.", "two", "dog", "a dogs"], ["a dog", "Two", "a dog", "a dog"]) == 0.5
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        exact_match(["a", "b"], ["a"])


def test_accuracy_counts_ties_as_wrong():
    logits = torch.tensor([[1.0, 2.0, 0.0], [3.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert accuracy(logits, torch.tensor([1, 1, 0])) == pytest.approx(1 / 3)


def test_nan_is_never_right():
    assert accuracy(torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.long)) == 0.0


@pytest.mark.parametrize("k", [1, 3, 10])
def test_recall_equals_torchmetrics(k):
    from torchmetrics.functional.retrieval import retrieval_recall

    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20, 30, generator=generator)
    relevant = torch.rand(20, 30, generator=generator) < 0.1
    relevant[:, 0] = True
    expected = torch.stack([retrieval_recall(s, r, top_k=k) for s, r in zip(scores, relevant, strict=True)]).mean()
    assert recall_at_k(scores, relevant, k) == pytest.approx(expected.item(), abs=1e-6)


def test_a_collapsed_model_finds_nothing():
    relevant = torch.eye(5, dtype=torch.bool)
    assert recall_at_k(torch.ones(5, 5), relevant, k=1) == 0.0
    assert recall_at_k(torch.full((5, 5), float("nan")), relevant, k=4) == 0.0
    assert recall_at_k(torch.ones(5, 5), relevant, k=5) == 1.0


def test_a_query_without_relevant_items_is_named():
    relevant = torch.eye(3, dtype=torch.bool)
    relevant[1] = False
    with pytest.raises(ValueError, match="query 1 has no relevant item"):
        recall_at_k(torch.ones(3, 3), relevant, k=1)


def test_perplexity_shifts_by_one_and_leaves_out_ignored_tokens():
    from torchmetrics.functional.text import perplexity as reference

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 8, 11, generator=generator)
    labels = torch.randint(0, 11, (3, 8), generator=generator)
    labels[:, :3] = -100
    nll, tokens = token_nll(logits, labels)
    assert tokens == 3 * 5
    expected = reference(logits[:, :-1], labels[:, 1:], ignore_index=-100)
    assert perplexity(nll, tokens) == pytest.approx(expected.item(), rel=1e-5)


def test_perplexity_of_a_uniform_model_is_the_vocabulary():
    nll, tokens = token_nll(torch.zeros(2, 5, 7), torch.ones(2, 5, dtype=torch.long))
    assert perplexity(nll, tokens) == pytest.approx(7.0)
    assert nll == pytest.approx(tokens * -F.log_softmax(torch.zeros(7), 0)[0].item())
    assert math.isclose(nll, 8 * math.log(7), rel_tol=1e-6)
    with pytest.raises(ValueError, match="at least one token"):
        perplexity(0.0, 0)
