"""A folder of pictures: the name of the sub-folder is the class; a text file of the same name is the caption."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mm.data.reading import OnError, Reader, Record, read_picture
from mm.data.sample import VisualSample

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class ImageFolder(Reader):
    """Reads all pictures below a folder in the order of their names.

    `root/cat/1.png` has the answer `cat`; `root/1.png` has none. `1.txt` beside it becomes the sample's `text`.

    Args:
        root: The folder.
        question: What is asked about every picture that has a class.
        on_error: What to do with a picture that can't be read.

    Raises:
        FileNotFoundError: no such folder (when read).
        ValueError: there is no picture in it (when read).
    """

    def __init__(
        self, root: str | Path, *, question: str = "what is in the picture?", on_error: OnError = "raise"
    ) -> None:
        super().__init__(str(root), on_error=on_error)
        self.root = Path(root)
        self.question = question

    def records(self) -> Iterator[Record]:
        if not self.root.is_dir():
            raise FileNotFoundError(f"{self.root}: no such folder of pictures")
        paths = sorted(path for path in self.root.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise ValueError(f"{self.root}: no pictures below it; looked for {', '.join(SUFFIXES)}")
        for index, path in enumerate(paths):
            yield f"{self.root}: picture {index}", partial(self._read, path, index)

    def _read(self, path: Path, index: int) -> VisualSample:
        label = path.parent.relative_to(self.root).as_posix()
        label = "" if label == "." else label
        caption = path.with_suffix(".txt")
        try:
            text = caption.read_text(encoding="utf-8").strip() if caption.is_file() else ""
        except UnicodeDecodeError as error:
            raise ValueError(f"{caption}: the caption is not UTF-8 text ({error})") from error
        question = self.question if label else ""
        return VisualSample([read_picture(path)], question, label, text, {"file": str(path), "index": index})
