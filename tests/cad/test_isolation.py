"""Kernel work that hangs, crashes or eats memory ends with a status, and the next piece of work is unharmed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

pytest.importorskip("manifold3d", reason="the helper process loads a kernel: pip install 'mm[cad]'")

from mm.cad.kernel import Limits, isolate
from mm.cad.kernel.isolate import Worker

HERE = "mm.cad.kernel.misbehave"
BAD_TASKS = """
import os, time

def preload(): pass
def good(payload, folder): return {"twice": 2 * payload["x"]}
def hang(payload, folder): time.sleep(60)
def spin(payload, folder):
    while True: pass
def crash(payload, folder): os.kill(os.getpid(), 11)
def leave(payload, folder): os._exit(3)
def eat(payload, folder): return {"n": len(bytearray(2**31))}
def fail(payload, folder): raise RuntimeError("gave up")
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A helper whose package has a module of misbehaving tasks."""
    import mm.cad.kernel as package

    (tmp_path / "misbehave.py").write_text(BAD_TASKS)
    start = (
        f"import mm.cad.kernel as p; p.__path__.append({str(tmp_path)!r}); "
        "from mm.cad.kernel.worker import main; raise SystemExit(main())"
    )
    popen = isolate.subprocess.Popen
    assert package.__path__
    monkeypatch.setattr(
        isolate.subprocess, "Popen", lambda command, **options: popen([command[0], "-c", start], **options)
    )
    worker = Worker()
    yield worker
    worker.close()


def run(worker: Worker, name: str, folder: Path, **limits):
    return worker.run(f"{HERE}:{name}", {"x": 21}, folder, Limits(**{"seconds": 20, "cpu_seconds": 20} | limits))


@pytest.mark.parametrize(
    ("task", "limits", "status"),
    [
        ("hang", {"seconds": 0.3}, "timeout"),
        ("spin", {"cpu_seconds": 1}, "cpu-limit"),
        ("crash", {}, "crashed"),
        ("leave", {}, "crashed"),
        ("eat", {"memory_mb": 512}, "out-of-memory"),
        ("fail", {}, "kernel-error"),
    ],
)
def test_a_bad_task_ends_with_its_status_and_harms_nobody(worker, tmp_path, task, limits, status):
    found = run(worker, task, tmp_path, **limits)
    assert found.status == status
    assert found.message
    assert run(worker, "good", tmp_path).result == {"twice": 42}


def test_a_hang_is_ended_in_time(worker, tmp_path):
    run(worker, "good", tmp_path)  # the helper is up
    begun = time.monotonic()
    run(worker, "hang", tmp_path, seconds=0.5)
    assert time.monotonic() - begun < 10


def test_a_killed_helper_is_replaced(worker, tmp_path):
    run(worker, "good", tmp_path)
    assert worker._process is not None
    os.kill(worker._process.pid, 9)
    worker._process.wait()
    assert run(worker, "good", tmp_path).status == "ok"


def test_only_own_functions_can_be_asked_for(worker, tmp_path):
    found = worker.run("os:system", {}, tmp_path, Limits())
    assert found.status == "kernel-error" and "os" in found.message


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="above 0"):
        Limits(seconds=0)
