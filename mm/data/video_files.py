"""Video files of a folder: which there are, and which one an annotation means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

# fmt: off
SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts",
    ".vob", ".flv", ".f4v", ".wmv", ".asf", ".3gp", ".ogv", ".mxf", ".gif", ".y4m",
)
# fmt: on
"""Endings by which a video is recognised in a folder; a file that is named by itself may have any."""


def video_files(folder: str | Path) -> list[Path]:
    """All videos below a folder, by name.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no video in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of videos")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"{folder}: no video below it; looked for {' '.join(SUFFIXES)}")
    return found


def video_key(path: Path, folder: Path) -> str:
    """Name of a video in a cache: its place below the folder and its size, so that another file gets another key."""
    return f"{path.relative_to(folder).as_posix()} ({path.stat().st_size} bytes)"


class VideoFiles:
    """Finds the files that annotations name.

    Args:
        folder: Where the videos lie; they may lie in folders below it.
        names: Name in the annotations -> name of the file, where the two differ.

    Raises:
        FileNotFoundError: no such folder.
    """

    def __init__(self, folder: str | Path, names: Mapping[str, str] | None = None) -> None:
        self.folder, self.names = Path(folder), dict(names or {})
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of videos")

    def find(self, name: str) -> Path:
        """The file of a name: a path below the folder, with or without its ending, or the bare name of a file anywhere
        below. An ending that differs (the annotation says .avi, the folder holds .mp4) is no obstacle.

        Raises:
            FileNotFoundError: no such video.
            ValueError: several files have this name, or it leads out of the folder.
        """
        name = self.names.get(name, name)
        wanted = Path(name)
        if wanted.is_absolute() or ".." in wanted.parts:
            raise ValueError(f"{name!r} leads out of the folder of videos; names are relative to {self.folder}")
        exact = self.folder / name
        if exact.is_file():
            return exact
        if (self.folder / f"{name}.mp4").is_file():  # what nearly all data sets hold: no need to list the folder
            return self.folder / f"{name}.mp4"
        # A dot inside a name is no ending: "video7.clip" stays whole unless what follows is a known ending.
        stem = wanted.with_suffix("").as_posix() if wanted.suffix.lower() in SUFFIXES else name
        found = self._by_name.get(stem) or self._by_name.get(Path(stem).name) if stem else None
        if not found:
            count = len({path for paths in self._by_name.values() for path in paths})
            raise FileNotFoundError(f"no video {name!r} below {self.folder}, which holds {count} videos")
        if len(found) > 1:
            listed = ", ".join(path.relative_to(self.folder).as_posix() for path in found[:4])
            raise ValueError(f"{name!r} may be any of {listed}; name the path below {self.folder}")
        return found[0]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        """Files by relative path and by bare name, both without ending."""
        names: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                for name in {path.relative_to(self.folder).with_suffix("").as_posix(), path.stem}:
                    names[name].append(path)
        return dict(names)
