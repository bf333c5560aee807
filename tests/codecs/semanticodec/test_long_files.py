"""Long recordings through the commands: what an hour needs, measured from outside."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE, MINUTE = 16_000, 60 * 16_000
PROGRAM = """
import json, resource, sys
from mm.cli import main

code = main(sys.argv[1:])
print(json.dumps({"code": code, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def recording(path: Path, minutes: int) -> Path:
    """Notes over noise, one minute again and again."""
    time = np.arange(MINUTE) / RATE
    noise = np.random.default_rng(0).normal(0, 0.02, MINUTE)
    minute = 0.2 * np.sin(2 * np.pi * (220 + 20 * np.floor(2 * time)) * time) + noise
    with soundfile.SoundFile(path, "w", RATE, 1, subtype="PCM_16") as file:
        for _ in range(minutes):
            file.write(minute)
    return path


def peak_mb(*arguments: str) -> float:
    """Largest memory of one `mm` command."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], env=environment, capture_output=True, text=True, timeout=600
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0, done.stderr
    return float(found["peak_mb"])


@pytest.mark.slow
def test_an_hour_takes_the_memory_of_five_minutes(tmp_path):
    peaks = {}
    for minutes in (5, 60):
        source, out = recording(tmp_path / f"{minutes}.wav", minutes), tmp_path / f"{minutes}.stk"
        peaks[minutes] = peak_mb("codec", "encode", str(source), str(out), "--model", "semanticodec_tiny")
        pairs = minutes * 60 * 25
        assert pairs * 2 < out.stat().st_size < 1.01 * pairs * 2 + 100
        source.unlink()
    print(f"peak of 5 min {peaks[5]:.0f} MB, of 60 min {peaks[60]:.0f} MB")
    assert peaks[60] - peaks[5] < 32, f"peak of 5 min {peaks[5]:.0f} MB, of 60 min {peaks[60]:.0f} MB"
