"""What is written beside every result so that it can be repeated: resolved configuration, versions, commit, seed."""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mm
from mm.checkpoint import write_aside, write_json

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"


def write_record(folder: Path, *, config_yaml: str, seed: int | None, command: Sequence[str], **more: Any) -> None:
    """Write `config.yaml` (complete: `mm fit --config` repeats the run) and `run.json` into a folder.

    Args:
        folder: Where the result stands; made if it does not exist.
        config_yaml: Every setting, defaults included.
        seed: What all random numbers started from.
        command: Words that started the run.
        more: Further plain entries of `run.json`.
    """
    facts = {
        "mm": mm.__version__,
        **source_commit(),
        "seed": seed,
        "command": shlex.join(command),
        **versions(),
        **more,
    }
    header = [f"# mm {facts['mm']}, commit {facts['commit'] or 'unknown'}, seed {seed}", f"# {facts['command']}"]
    with write_aside(folder / CONFIG_FILE) as path:
        path.write_text("\n".join([*header, config_yaml]), encoding="utf-8")
    with write_aside(folder / RUN_FILE) as path:
        write_json(path, facts)


def versions() -> dict[str, str]:
    """Versions of what computes."""
    names = ("torch", "lightning", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def source_commit() -> dict[str, Any]:
    """Commit of the source tree and whether it holds changes; both `None` if this is an installed package."""
    root = Path(mm.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "changed": None}

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):  # no git program, or a folder that git refuses to read
        return {"commit": None, "changed": None}
