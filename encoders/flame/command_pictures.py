"""`mm flame classify` and `mm flame search`: pictures and text against each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.command import OK, CommandParser, emit_json, emit_table, positive, progress
from mm.encoders.flame.command_parts import add_model, image_model, picture_files, text_tower

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

    from mm.data import VisualSample
    from mm.encoders.flame.model import FlameImageEncoder
    from mm.encoders.flame.store import FacetStore

CAPTIONS_AT_ONCE = 8192


def classify(argv: list[str]) -> int:
    """Name what is in pictures."""
    parser = CommandParser(
        "flame classify",
        about="Zero-shot classification: every label is put into some sentences, a picture gets the label whose\n"
        "sentences are nearest. `probability` is a softmax over the labels that were given.",
        example="mm flame classify photo.jpg --labels 'red circle' 'blue square' --language plain",
        json_output=True,
    )
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="picture files or folders of pictures")
    parser.add_argument("--labels", nargs="+", help="names of the classes, in any language")
    parser.add_argument("--labels-file", help="text file with one name per line, instead of --labels")
    parser.add_argument("--top", type=positive, default=1, help="labels to show per picture (default: 1)")
    add_phrases(parser)
    add_model(parser)
    arguments = parser.parse_args(argv)

    import torch

    from mm.encoders.flame.evaluation import class_vectors, image_features

    names, phrases, files = _labels(arguments), chosen_phrases(arguments), picture_files(arguments.images)
    model = image_model(arguments)
    tower = text_tower(model, arguments)
    classes = class_vectors(tower, names, phrases, template=arguments.template)
    found = image_features(model, _samples(files), progress=progress("pictures", len(files)))
    cosines = found.vectors @ classes.cpu().T
    shares = torch.softmax(cosines * model.logit_scale.detach().exp().cpu(), dim=1)
    order = cosines.sort(dim=1, descending=True, stable=True).indices[:, : arguments.top]
    rows = [
        {"image": file, "label": names[k], "probability": shares[i, k].item(), "cosine": cosines[i, k].item()}
        for i, file in enumerate(found.names)
        for k in order[i].tolist()
    ]
    emit_json(rows) if arguments.json else emit_table(rows)
    return OK


def search(argv: list[str]) -> int:
    """Find pictures by text, or captions by a picture."""
    parser = CommandParser(
        "flame search",
        about="Find the pictures that a text describes (--images), or the stored captions that describe a picture\n"
        "(--store; QUERY is a picture file then, and the language model is not needed).",
        example="mm flame search 'a red circle' --images pictures --top 5",
        json_output=True,
    )
    parser.add_argument("query", metavar="QUERY", help="text, or a picture file with --store")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--images", metavar="PLACE", help="folder, .tar shards or table of pictures to search")
    where.add_argument("--store", metavar="STORE", help="captions to search, from mm flame embed")
    parser.add_argument("--top", type=positive, default=5, help="how many to show (default: 5)")
    parser.add_argument("--template", default="single", help="template of the text (default: single)")
    add_model(parser)
    arguments = parser.parse_args(argv)
    rows = _pictures_for_text(arguments) if arguments.images else _captions_for_picture(arguments)
    emit_json(rows) if arguments.json else emit_table(rows)
    return OK


def _pictures_for_text(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from mm.encoders.flame.evaluation import image_features, open_source

    if not arguments.query.strip():
        raise ValueError("the query is empty; write what to look for")
    source = open_source(arguments.images)
    model = image_model(arguments)
    tower = text_tower(model, arguments)
    text = tower.encode([arguments.query], template=arguments.template, reduce="mean", normalize=True).float().cpu()
    found = image_features(model, source, progress=progress("pictures", 0))
    cosines, order = (found.vectors @ text[0]).sort(descending=True, stable=True)
    best = zip(cosines.tolist(), order.tolist(), strict=True)
    return [{"cosine": cosine, "image": found.names[index]} for cosine, index in list(best)[: arguments.top]]


def _captions_for_picture(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    import torch

    from mm.encoders.flame.evaluation import image_features
    from mm.encoders.flame.store import FacetStore

    store, files = FacetStore(arguments.store), picture_files([arguments.query])
    if len(files) != 1:
        raise ValueError(f"{arguments.query}: --store takes one picture, this folder holds {len(files)}")
    model = image_model(arguments)
    fitting_store(store, model, arguments)
    vector = image_features(model, _samples(files)).vectors[0]
    captions = list(store)
    cosines = torch.cat([part @ vector for part in _vectors(store, captions)])
    best = cosines.sort(descending=True, stable=True).indices[: arguments.top].tolist()
    return [{"cosine": cosines[index].item(), "caption": captions[index]} for index in best]


def _vectors(store: FacetStore, captions: list[str]) -> Iterator[Tensor]:
    return (
        store.embed(captions[first : first + CAPTIONS_AT_ONCE]) for first in range(0, len(captions), CAPTIONS_AT_ONCE)
    )


def fitting_store(store: FacetStore, model: FlameImageEncoder, arguments: argparse.Namespace) -> None:
    """Refuse a store of another text tower; the language model is only read if names leave a doubt.

    Raises:
        ValueError: another language model, layer or wording.
    """
    from mm.encoders.flame.store import FacetStore

    if store.width == model.width and store.cache.about == asdict(model.config.text) and not arguments.text:
        return
    FacetStore(store.folder, tower=text_tower(model, arguments))


def add_phrases(parser: argparse.ArgumentParser) -> None:
    """Options about the sentences around class names."""
    from mm.encoders.flame.evaluation.phrases import PHRASES

    known = ", ".join(PHRASES)
    parser.add_argument("--language", choices=list(PHRASES), default="en", help=f"sentences around names: {known}")
    parser.add_argument("--phrases", metavar="FILE", help="sentences of your own, one per line with {} for the name")
    parser.add_argument("--template", default="single", help="template of the text tower (default: single)")


def chosen_phrases(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The sentences that were asked for."""
    from mm.encoders.flame.evaluation.phrases import PHRASES, read_phrases

    return read_phrases(arguments.phrases) if arguments.phrases else PHRASES[arguments.language]


def _labels(arguments: argparse.Namespace) -> list[str]:
    if bool(arguments.labels) == bool(arguments.labels_file):
        raise ValueError("name the classes with --labels, or in a file with --labels-file (one of the two)")
    if arguments.labels:
        return list(arguments.labels)
    path = Path(arguments.labels_file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of labels")
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _samples(files: list[Path]) -> Iterator[VisualSample]:
    from mm.data import VisualSample
    from mm.data.reading import read_picture

    return (VisualSample([read_picture(file)], "", "", "", {"id": str(file)}) for file in files)
