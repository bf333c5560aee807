"""Triton kernels without a GPU: TRITON_INTERPRET is read when a kernel is defined, hence an own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = sorted((Path(__file__).parent / "interpreter").glob("test_*.py"))


@pytest.mark.parametrize("path", CHECKS, ids=lambda path: path.stem)
def test_interpreted_kernels_agree_with_the_reference(path):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
