"""Kernel work in a process of its own: a hang or a crash ends the work, never the program that asked for it.

A CAD kernel can hang or crash on legal input, and the input is what a model wrote. One helper process per caller loads
the kernel once and forks a confined child for every piece of work (`worker`).
"""

from __future__ import annotations

import atexit
import json
import os
import selectors
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm.cad.kernel.status import Limits, Outcome

START_SECONDS = 120.0
"""Allowed on top of the work for starting Python and loading a kernel on a busy machine."""


class Worker:
    """A helper process and the channel to it; started at the first request, restarted when it is gone."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def run(self, task: str, payload: dict[str, Any], folder: Path, limits: Limits) -> Outcome:
        """Do one piece of work.

        Args:
            task: "module:function" of this package; called as `function(payload, folder) -> dict`.
            payload: Plain data.
            folder: Where it may leave files.
            limits: What it may use.
        """
        request = {"task": task, "payload": payload, "folder": str(folder), "limits": asdict(limits)}
        with self._lock:
            process = self._running()
            try:
                assert process.stdin is not None
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                line = _read_line(process, limits.seconds + START_SECONDS)
            except BrokenPipeError:
                line = ""
            if not line:
                self._stop()
                return Outcome("crashed", "the kernel process gave no answer and was stopped")
            return Outcome(**json.loads(line))

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            if not hasattr(os, "fork"):
                raise OSError(
                    "isolated kernel work needs a POSIX system; pass limits=None to build inside this process"
                )
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mm.cad.kernel.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
            )
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End the helper process; the next request starts a new one."""
        with self._lock:
            self._stop()


def _read_line(process: subprocess.Popen[str], seconds: float) -> str:
    """One line of its output, "" when it ended or took too long."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return process.stdout.readline() if selector.select(seconds) else ""


_workers: dict[int, Worker] = {}


def run_isolated(task: str, payload: dict[str, Any], folder: Path, limits: Limits) -> Outcome:
    """`Worker.run` on the helper of this process; a forked caller gets a helper of its own."""
    worker = _workers.get(os.getpid())
    if worker is None:
        worker = _workers[os.getpid()] = Worker()
        atexit.register(worker.close)
    return worker.run(task, payload, folder, limits)
