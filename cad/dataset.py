"""A folder of DeepCAD files becomes a training set: LLaVA records, program texts, pictures and, if wanted, STEP files.

Every part is finished on its own and leaves one small record, written last: a killed run is repeated with the same
command and goes on with the parts that have none. A part that cannot be read, built or drawn leaves a record that says
why. Source: paper sections 4 and 5.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from mm.cad.deepcad import References, from_deepcad
from mm.cad.drawing import render
from mm.cad.emitter import Style as TextStyle
from mm.cad.emitter import emit
from mm.cad.errors import ProgramError
from mm.cad.kernel import BuildError, Limits, Solid, build
from mm.cad.kernel.solid import Kernel
from mm.cad.manner import PUBLISHED
from mm.checkpoint import write_aside, write_json

MIX: dict[str, float] = {"shaded": 0.625, "transparent": 0.25, "orthographic": 0.125}
"""Shares of the picture styles in the published set of 100,000."""
ALL_STYLES = ("shaded", "transparent", "orthographic", "sketch")
ANSWER = PUBLISHED.head + "{code}" + PUBLISHED.tail
PROMPTS: dict[str, str] = {
    "shaded": PUBLISHED.question,
    "transparent": "This picture shows a 3D part, drawn so that hidden edges can be seen. Write the OpenECAD program "
    "that builds it.",
    "orthographic": "This picture shows four views of one 3D part. Write the OpenECAD program that builds it.",
    "sketch": "This line drawing shows a 3D part. Write the OpenECAD program that builds it.",
}
"""Style -> question; a configuration, not part of the language."""
LEAST_VIEW = 0.75
"""Shaded pictures look from (u, v, w), each drawn from [0.75, 1)."""
INDEX, REPORT, SETTINGS = "train.json", "report.json", "settings.json"


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """How parts become samples."""

    kernel: Kernel = "occ"
    """occ: exact; mesh: quick, without STEP files."""
    references: References = "official"
    """How sketch planes are tied to earlier extrudes."""
    text: TextStyle = "official"
    """Style of the program text."""
    pictures: Literal["mix", "all"] = "mix"
    """mix: one picture per part, styles in the shares of the published set; all: all four styles of every part."""
    size: tuple[int, int] = (640, 480)
    """Width and height of a picture, pixels."""
    step: bool = False
    """Also write a STEP file per part."""
    max_characters: int = 0
    """Leave out parts with a longer text (status too-long); 0 = no limit. Nothing is ever cut."""
    seconds: float = 30.0
    """Longest time of one kernel call."""
    seed: int = 0
    """Of styles and views."""


@dataclass(frozen=True)
class Report:
    """What became of the parts."""

    parts: int
    statuses: dict[str, int]
    """Status -> number of parts; `ok` are in the training set."""
    samples: int
    """Records in the training set."""
    skipped: int
    """Parts that an earlier run had finished."""
    seconds: float
    """Of this run."""


def make_dataset(
    source: str | Path, out: str | Path, config: DatasetConfig | None = None, *, workers: int = 1, progress: Any = None
) -> Report:
    """Convert a folder of DeepCAD JSON files.

    Args:
        source: Folder; `*.json` at any depth, the path without its ending is the part's id.
        out: Folder to fill: `train.json`, `images/`, `programs/`, `step/`, `records/`, `report.json`.
        config: How.
        workers: Parts at the same time.
        progress: Called with (record, done, total) after every part.

    Raises:
        FileNotFoundError: no such folder or nothing in it.
        ValueError: `out` was begun with other settings.
    """
    config, out, begun = config or DatasetConfig(), Path(out), time.monotonic()
    files = find_parts(Path(source))
    settle(out, config)
    todo = {name: path for name, path in files.items() if not record_path(out, name).is_file()}
    done = len(files) - len(todo)
    skipped = done
    for record in _convert_all(todo, out, config, workers):
        done += 1
        if progress is not None:
            progress(record, done, len(files))
    return _finish(out, list(files), skipped, time.monotonic() - begun)


def find_parts(source: Path) -> dict[str, Path]:
    """Id -> file of every part in a folder, sorted.

    Raises:
        FileNotFoundError: no such folder, or no JSON file in it.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: no such folder")
    files = {str(path.relative_to(source).with_suffix("")): path for path in sorted(source.rglob("*.json"))}
    if not files:
        raise FileNotFoundError(f"{source}: no *.json in this folder")
    return files


def settle(out: Path, config: DatasetConfig) -> None:
    """Store the settings, or compare with those the folder was begun with.

    Raises:
        ValueError: they differ.
    """
    path, settings = out / SETTINGS, json.loads(json.dumps(asdict(config)))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key in settings if before.get(key) != settings[key]]
        if other:
            raise ValueError(f"{out} was begun with other settings ({', '.join(other)}); choose another folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as temporary:
        write_json(temporary, settings)


def record_path(out: Path, name: str) -> Path:
    """Where the record of a part is; the folder is split by a hash, so that no folder has too many files."""
    return out / "records" / hashlib.sha256(name.encode()).hexdigest()[:2] / f"{_file_name(name)}.json"


def _file_name(name: str) -> str:
    """An id as a file name; ids that differ keep different names."""
    safe = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
    return safe if safe == name else f"{safe[:80]}-{zlib.crc32(name.encode()):08x}"


# --- all parts ---------------------------------------------------------------------------------------------------


def _convert_all(todo: dict[str, Path], out: Path, config: DatasetConfig, workers: int) -> Iterator[dict[str, Any]]:
    work = partial(convert_part, out=out, config=config)
    if workers <= 1:
        yield from (work(name, path) for name, path in todo.items())
        return
    waiting = dict(todo)
    while waiting:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = {name: pool.submit(work, name, path) for name, path in waiting.items()}
            try:
                for name, future in futures.items():
                    yield future.result()
                    del waiting[name]
            except BrokenProcessPool:
                waiting = _after_a_death(waiting, out)


def _after_a_death(waiting: dict[str, Path], out: Path) -> dict[str, Path]:
    """A whole worker died (out of memory, say): the part that was first in line gets a record, the others go on."""
    left = {name: path for name, path in waiting.items() if not record_path(out, name).is_file()}
    if left:
        name = next(iter(left))
        _write_record(out, name, {"id": name, "status": "worker-died", "message": "the worker process died"})
        left.pop(name)
    return left


def _finish(out: Path, names: list[str], skipped: int, seconds: float) -> Report:
    """Join the records of all parts into the training set."""
    samples: list[dict[str, Any]] = []
    statuses: Counter[str] = Counter()
    for name in names:
        record = json.loads(record_path(out, name).read_text(encoding="utf-8"))
        statuses[record["status"]] += 1
        samples += record.get("samples", [])
    report = Report(len(names), dict(statuses), len(samples), skipped, seconds)
    with write_aside(out / INDEX) as temporary:
        write_json(temporary, samples)
    with write_aside(out / REPORT) as temporary:
        write_json(temporary, asdict(report))
    return report


# --- one part ----------------------------------------------------------------------------------------------------


def convert_part(name: str, path: Path, *, out: Path, config: DatasetConfig) -> dict[str, Any]:
    """Convert one file and write its record; never raises for what is wrong with the part."""
    begun = time.monotonic()
    record: dict[str, Any] = {"id": name, "status": "ok"}
    try:
        record |= _samples(name, path, out, config)
    except BuildError as error:
        record |= {"status": error.status, "message": str(error)}
    except ProgramError as error:
        record |= {"status": error.code, "message": str(error)}
    except (ValueError, KeyError, TypeError, RecursionError, ArithmeticError) as error:
        record |= {"status": "unreadable", "message": f"{type(error).__name__}: {error}"}
    record["seconds"] = round(time.monotonic() - begun, 3)
    _write_record(out, name, record)
    return record


def _write_record(out: Path, name: str, record: dict[str, Any]) -> None:
    with write_aside(record_path(out, name)) as temporary:
        write_json(temporary, record)


def _samples(name: str, path: Path, out: Path, config: DatasetConfig) -> dict[str, Any]:
    program = from_deepcad(json.loads(path.read_text(encoding="utf-8")), references=config.references)
    code, file = emit(program, style=config.text), _file_name(name)
    if config.max_characters and len(code) > config.max_characters:
        return {"status": "too-long", "message": f"{len(code)} characters, allowed are {config.max_characters}"}
    limits = Limits(seconds=config.seconds, cpu_seconds=config.seconds)
    solid = build(code, kernel=config.kernel, limits=limits)  # the text, not the input: what is learned must build
    styles = ALL_STYLES if config.pictures == "all" else (_style(name, config.seed),)
    samples = []
    for style in styles:
        picture = f"{file}.png" if len(styles) == 1 else f"{file}_{style}.png"
        _draw(solid, name, style, out / "images" / picture, config)
        samples.append(_sample(name if len(styles) == 1 else f"{name}_{style}", picture, style, code))
    with write_aside(out / "programs" / f"{file}.py") as temporary:
        temporary.write_text(code, encoding="utf-8")
    if config.step:
        solid.export(out / "step" / f"{file}.step", limits=limits)
    return {"samples": samples, "volume": solid.volume, "characters": len(code), "extrudes": len(program.extrudes)}


def _draw(solid: Solid, name: str, style: str, path: Path, config: DatasetConfig) -> None:
    view = tuple(_random(name, config.seed, "view").uniform(LEAST_VIEW, 1.0, 3)) if style == "shaded" else (1, 1, 1)
    picture = Image.fromarray(render(solid, view=view, style=style, size=tuple(config.size)))  # type: ignore[arg-type]
    with write_aside(path) as temporary:
        picture.save(temporary)


def _sample(name: str, picture: str, style: str, code: str) -> dict[str, Any]:
    turns = [("human", f"<image>\n{PROMPTS[style]}"), ("gpt", ANSWER.format(code=code))]
    return {"id": name, "image": picture, "conversations": [{"from": who, "value": text} for who, text in turns]}


def _style(name: str, seed: int) -> str:
    """The style of a part's picture; depends on nothing but its id and the seed."""
    return str(_random(name, seed, "style").choice(list(MIX), p=list(MIX.values())))


def _random(name: str, seed: int, stream: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(f"{stream} {name}".encode())])
