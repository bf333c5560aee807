"""The other side of `isolate`: a small process that loads the kernel once and forks a child for every piece of work.

Protocol: one JSON line in ({"task", "payload", "folder", "limits"}), one JSON line out ({"status", "message", "result",
"seconds"}). The child inherits the loaded libraries, so that isolation costs milliseconds and not the import of a
kernel; whatever it does to itself, this process and the caller live on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from mm.cad.kernel.status import BuildError

RESULT = "result.json"
TASKS = "mm.cad."
"""Tasks are functions of this package, never names from outside."""


def main() -> int:
    """Serve until the caller closes our input."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # kernels print progress on the standard output, which is our channel
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = perform(request)
        except ImportError as error:
            answer = {"status": "not-installed", "message": str(error), "result": {}}
        except Exception as error:  # the caller must always get an answer
            answer = {"status": "kernel-error", "message": f"{type(error).__name__}: {error}", "result": {}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def perform(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait no longer than allowed, and say how it ended."""
    module, _, name = request["task"].partition(":")
    if not module.startswith(TASKS):
        raise ValueError(f"{module} is not a module of {TASKS.rstrip('.')}")
    home = import_module(module)  # imported here once, inherited by every child
    home.preload()
    task = getattr(home, name)
    folder, limits = Path(request["folder"]), request["limits"]
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _work(task, request["payload"], folder, limits)
    code = _wait(child, begun + limits["seconds"])
    seconds = time.monotonic() - begun
    return {**_verdict(code, folder / RESULT, limits), "seconds": seconds}


def _work(task: Any, payload: dict[str, Any], folder: Path, limits: dict[str, Any]) -> None:
    """The child: never returns."""
    code = 1
    try:
        confine(limits)
        try:
            answer = {"status": "ok", "message": "", "result": task(payload, folder)}
        except BuildError as error:
            answer = {"status": error.status, "message": str(error), "result": {}}
        except MemoryError:
            answer = {"status": "out-of-memory", "message": _memory_message(limits), "result": {}}
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            answer = {"status": "kernel-error", "message": f"{type(error).__name__}: {text}", "result": {}}
        (folder / RESULT).write_text(json.dumps(answer), encoding="utf-8")
        code = 0
    finally:
        os._exit(code)


def confine(limits: dict[str, Any]) -> None:
    """Set the processor and memory limits of this process, counted from what it uses already."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = math.ceil(used.ru_utime + used.ru_stime + limits["cpu_seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # macOS has no such file and refuses this limit
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        space = pages * resource.getpagesize() + limits["memory_mb"] * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (space, space))


def _wait(child: int, deadline: float) -> int | None:
    """Wait status of the child, None if it had to be killed at the deadline."""
    pause = 0.0005
    while True:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            return code
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)


def _verdict(code: int | None, path: Path, limits: dict[str, Any]) -> dict[str, Any]:
    if code is None:
        message = f"stopped after {limits['seconds']:g} s of wall-clock time"
        return {"status": "timeout", "message": message, "result": {}}
    if os.WIFEXITED(code) and os.WEXITSTATUS(code) == 0 and path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    if os.WIFSIGNALED(code):
        number = os.WTERMSIG(code)
        if number in (signal.SIGXCPU, signal.SIGKILL):  # the hard limit kills outright
            message = f"stopped after {limits['cpu_seconds']:g} s of processor time"
            return {"status": "cpu-limit", "message": message, "result": {}}
        name = signal.Signals(number).name
        return {"status": "crashed", "message": f"the kernel died of {name}", "result": {}}
    return {"status": "crashed", "message": f"the kernel left with exit code {os.WEXITSTATUS(code)}", "result": {}}


def _memory_message(limits: dict[str, Any]) -> str:
    return f"needs more than {limits['memory_mb']} MiB"


if __name__ == "__main__":
    sys.exit(main())
