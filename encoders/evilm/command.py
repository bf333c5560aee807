"""`mm video`: semantic codes of videos, and videos found and questioned by text (E-ViLM)."""

from __future__ import annotations

from importlib import import_module

from mm.command import CommandParser, UsageError

EXAMPLE = (
    "mm video tokenize CLIP.mp4 --output codes.npz\n"
    "  mm video index CLIPS -o index/\n"
    "  mm video search index/ 'a red square moves left' -k 5\n"
    "  mm video ask CLIP.mp4 --question 'in which direction does the square move?'"
)
ABOUT = """Work with videos, any container that FFmpeg reads.

mm video tokenize CLIP|FOLDER   semantic codes of frames, as a file or as a cache for training
mm video index FOLDER|CSV       encode clips once
mm video search INDEX QUERY     find indexed clips by text
mm video ask CLIP               answer a question about a clip
mm video evaluate ANNOTATIONS   retrieval R@k or answers on MSRVTT, MSVD, DiDeMo, WebVid or own clips"""
PLACES = {
    "tokenize": ("mm.codecs.semantic_vq.command", "tokenize"),
    "index": ("mm.encoders.evilm.command_index", "index"),
    "search": ("mm.encoders.evilm.command_index", "search"),
    "ask": ("mm.encoders.evilm.command_ask", "ask"),
    "evaluate": ("mm.encoders.evilm.command_evaluate", "evaluate"),
}


def run(argv: list[str]) -> int:
    """Run `mm video`."""
    if not argv or argv[0] not in PLACES:
        parser = CommandParser("video", about=ABOUT, example=EXAMPLE)
        parser.parse_args([word for word in argv if word in ("-h", "--help")])
        known = ", ".join(PLACES)
        raise UsageError(
            f"mm video: unknown word {argv[0]!r}; known: {known}" if argv else f"mm video: name a word: {known}"
        )
    module, name = PLACES[argv[0]]
    return int(getattr(import_module(module), name)(argv[1:]))
