"""`mm flame`: text embeddings computed once, and pictures classified and found by text."""

from __future__ import annotations

from mm.command import CommandParser, UsageError

EXAMPLE = "mm flame embed captions.csv --model tiny_lm --templates world --out captions.store"
ABOUT = """A frozen language model as the text tower of pictures (FLAME).

mm flame embed CAPTIONS     embed captions once, into a store that training and search read
mm flame check STORE        compare every shard of a store with its checksum
mm flame compress STORE     a smaller copy (int8, product codes) and what it loses
mm flame classify IMAGE     name what is in pictures, among labels in any language
mm flame search QUERY       find pictures by text, or stored captions by a picture
mm flame evaluate DATA      zero-shot classification, retrieval R@k, linear probe"""
PLACES = {
    "embed": ("mm.encoders.flame.command_store", "embed"),
    "check": ("mm.encoders.flame.command_store", "check"),
    "compress": ("mm.encoders.flame.command_store", "compress"),
    "classify": ("mm.encoders.flame.command_pictures", "classify"),
    "search": ("mm.encoders.flame.command_pictures", "search"),
    "evaluate": ("mm.encoders.flame.command_evaluate", "evaluate"),
}


def run(argv: list[str]) -> int:
    """Run `mm flame`."""
    if not argv or argv[0] not in PLACES:
        parser = CommandParser("flame", about=ABOUT, example=EXAMPLE)
        parser.add_argument("what", choices=list(PLACES))
        parser.parse_args(argv)  # help, or a usage error
        raise UsageError(f"what to do comes first: mm flame {'|'.join(PLACES)}")
    from importlib import import_module

    module, name = PLACES[argv[0]]
    return int(getattr(import_module(module), name)(argv[1:]))
