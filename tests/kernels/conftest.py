"""Common tools of the kernel tests: fp64 comparison, poisoned outputs, and the interpreter's own process."""

import os

import pytest
import torch

# Files that need TRITON_INTERPRET=1 before any kernel is defined; tests/kernels/test_interpreter.py runs them.
collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreter/*"]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 1e-2}
"""Largest norm-wise relative error against the fp64 result on the same rounded inputs."""


@pytest.fixture
def close():
    """`close(ours, exact, dtype=None, limit=None)` fails on NaN and on a relative error above the dtype's tolerance."""

    def check(ours, exact, dtype=None, limit=None):
        assert ours.shape == exact.shape, f"shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
        error = float((ours.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))
        bound = TOLERANCE[dtype or ours.dtype] if limit is None else limit
        assert error <= bound, f"relative error {error:.2e} above {bound:.0e}"  # NaN fails this, too

    return check


@pytest.fixture(autouse=True)
def poisoned():
    """Every `torch.empty` is filled with NaN, so that an output element nobody wrote is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture
def rng():
    """A seeded generator; fresh inputs come from it."""
    return torch.Generator().manual_seed(0)
