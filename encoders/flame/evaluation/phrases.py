"""Sentences around a class name, in several languages; `{}` is the name.

A frozen language model reads them all, though the image encoder was trained with English captions only. They are ours:
the published evaluation takes CLIP's eighty English templates, which a file of one's own can hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PHRASES: dict[str, tuple[str, ...]] = {
    "en": ("a photo of a {}.", "a picture of a {}.", "a close view of a {}.", "there is a {} in this picture."),
    "de": ("ein Foto: {}.", "ein Bild mit {}.", "eine Nahaufnahme: {}.", "auf diesem Bild ist zu sehen: {}."),
    "fr": ("une photo : {}.", "une image avec {}.", "un gros plan : {}.", "sur cette image on voit : {}."),
    "it": ("una foto: {}.", "un'immagine con {}.", "un primo piano: {}.", "in questa immagine si vede: {}."),
    "es": ("una foto: {}.", "una imagen con {}.", "un primer plano: {}.", "en esta imagen se ve: {}."),
    "zh": ("一张{}的照片。", "一张{}的图片。", "{}的特写。", "这张图片里有{}。"),
    "ja": ("{}の写真。", "{}の画像。", "{}の接写。", "この画像には{}があります。"),
    "ar": ("صورة {}.", "لقطة مقربة: {}.", "في هذه الصورة: {}."),
    "plain": ("{}",),
}
"""Language -> sentences; "plain" is the bare name, for models whose whole vocabulary is a few words."""


def read_phrases(path: str | Path) -> tuple[str, ...]:
    """Sentences from a text file, one per line.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no sentence, or one without `{}` (named).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of sentences")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return checked_phrases([line for line in lines if line], source=str(path))


def checked_phrases(phrases: Sequence[str], *, source: str = "phrases") -> tuple[str, ...]:
    """Sentences that all have a place for the name.

    Raises:
        ValueError: none, or one without `{}`.
    """
    wrong = [phrase for phrase in phrases if phrase.count("{}") != 1]
    if wrong or not phrases:
        found = f"got {wrong[0]!r}" if wrong else "there is none"
        raise ValueError(f"{source}: every sentence needs exactly one {{}} where the class name goes; {found}")
    return tuple(phrases)
