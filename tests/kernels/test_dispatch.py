"""The decision table: pure, never raising for `auto`, and telling for everything else."""

import logging

import pytest
import torch

from mm.kernels import dispatch, explain
from mm.kernels.dispatch import Candidate, Dispatcher, Situation, needs_triton

TWICE = Dispatcher(
    "twice",
    Candidate(
        "triton", "fused", needs_triton, lambda s: "under 64 rows a launch costs more" if s.length < 64 else None
    ),
    Candidate("sdpa", "fused by torch", lambda s: "no backward" if s.needs_grad else None),
    Candidate("reference", "always runs"),
)
GPU = {"device": "cuda", "capability": (9, 0), "triton": True}


@pytest.mark.parametrize(
    ("where", "impl"),
    [
        (Situation(**GPU, length=64), "triton"),
        (Situation(**GPU, length=63), "sdpa"),
        (Situation(**GPU | {"capability": (7, 5)}, length=64), "sdpa"),
        (Situation(**GPU | {"triton": False}, length=64), "sdpa"),
        (Situation(**GPU, length=64, dtype=torch.float64), "sdpa"),
        (Situation(length=64), "sdpa"),
        (Situation(length=64, needs_grad=True), "reference"),
    ],
)
def test_auto_takes_the_first_that_is_valid_and_says_what_it_passed_over(where, impl):
    choice = TWICE.decide(where)
    assert choice.impl == impl
    assert choice.reason.count("not ") >= ["triton", "sdpa", "reference"].index(impl)


def test_a_forced_name_overrides_preference_but_not_possibility():
    assert TWICE.decide(Situation(**GPU, length=1), "triton").impl == "triton"
    with pytest.raises(ValueError, match=r"twice: impl='triton' cannot run: no CUDA device .*use impl='sdpa'"):
        TWICE.decide(Situation(length=64), "triton")
    with pytest.raises(ValueError, match="twice has no implementation 'flex'; choose auto, triton, sdpa, reference"):
        TWICE.decide(Situation(), "flex")


def test_the_environment_replaces_auto_only(monkeypatch):
    monkeypatch.setenv("MM_KERNELS", "other=triton, twice=reference")
    assert TWICE.choose(Situation()) == "reference"
    assert TWICE.choose(Situation(), "sdpa") == "sdpa"
    monkeypatch.setenv("MM_KERNELS", "flex")  # a name this kernel does not offer leaves it alone
    assert TWICE.choose(Situation()) == "sdpa"
    monkeypatch.setenv("MM_KERNELS", "fastest")
    with pytest.raises(ValueError, match="MM_KERNELS=fastest: unknown implementation 'fastest'"):
        TWICE.choose(Situation())
    monkeypatch.setenv("MM_KERNELS", "twice=triton")
    with pytest.raises(ValueError, match="cannot run"):
        TWICE.choose(Situation())


def test_each_decision_is_logged_once_and_explained(caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "_DECISIONS", {})
    with caplog.at_level(logging.INFO, logger="mm.kernels.dispatch"):
        for length in (1, 2, 3):
            TWICE.choose(Situation(length=length))
    assert len(caplog.records) == 1
    assert explain() == "twice on cpu: sdpa (fused by torch; not triton: no CUDA device (cpu tensors))"
