"""One pass against seven: the closed form, what really runs, and that training never runs the language model."""

from __future__ import annotations

import pytest
import torch

from mm.encoders.flame.flops import FACET_TOKENS, PREFIX_TOKENS, lengths, rows
from mm.encoders.flame.latency import candidates
from mm.encoders.flame.latency import rows as latency_rows
from mm.metrics.flops import ExecutedFlops


def test_one_pass_costs_at_most_a_third_at_64_tokens():
    table = {row["tokens"]: row for row in rows()}
    row = table[PREFIX_TOKENS + 64 + sum(FACET_TOKENS)]
    assert row["tokens"] == 185 and row["baseline_tokens"] == 653
    assert row["share"] <= 0.35 and row["share"] == pytest.approx(185 / 653, rel=0.01)
    assert [row["share"] for row in rows()] == sorted((row["share"] for row in rows()), reverse=True)


def test_the_closed_form_is_what_runs():
    """Executed operations of the masked pass and of the seven passes, counted while they run."""
    functions, shape = candidates((64,), width=64, depth=3, batch=2, device="cpu")
    together, apart = lengths(64)
    expected = {
        "one pass 64": shape.prefill_flops(together, causal=False, logits="none"),
        "seven passes 64": sum(shape.prefill_flops(length, causal=False, logits="none") for length in apart),
    }
    for name, flops in expected.items():
        with torch.no_grad(), ExecutedFlops() as counter:
            functions[name]()
        assert counter.total == pytest.approx(2 * flops, rel=0.01), name


def test_measured_ratio_stands_beside_the_closed_one():
    table = latency_rows(repeats=2, width=64, depth=2, batch=1)
    assert [row["flop_share"] > 0 and row["time_share"] > 0 for row in table] == [True] * 3
