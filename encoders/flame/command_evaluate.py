"""`mm flame evaluate`: zero-shot classification, retrieval, linear probe on pictures of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm.checkpoint import read_json
from mm.command import OK, CommandParser, emit_json, emit_table, positive, progress
from mm.encoders.flame.command_parts import add_model, image_model, text_tower
from mm.encoders.flame.command_pictures import add_phrases, chosen_phrases, fitting_store

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

    from mm.encoders.flame.evaluation import ImageFeatures
    from mm.encoders.flame.model import FlameImageEncoder


def evaluate(argv: list[str]) -> int:
    """Measure an image model on recorded pictures."""
    arguments = _parser().parse_args(argv)
    if arguments.task != "probe" and arguments.test:
        raise ValueError("--test is the test set of --task probe; the other tasks have one set")
    model = image_model(arguments)
    result = {"task": arguments.task, "model": arguments.model, "data": arguments.data}
    result |= TASKS[arguments.task](model, arguments)
    emit_json(result) if arguments.json else emit_table([result])
    return OK


def _parser() -> CommandParser:
    parser = CommandParser(
        "flame evaluate",
        about="Measure an image model on a folder (sub-folders are classes, text files captions), WebDataset shards,\n"
        "or a table (.csv, .tsv, .json, COCO's .json, .jsonl).",
        example="mm flame evaluate pictures --task classify --language de --names german.json",
        json_output=True,
    )
    parser.add_argument("data", metavar="DATA", help="folder, .tar shards or table")
    parser.add_argument("--task", choices=list(TASKS), required=True, help="what to measure")
    parser.add_argument("--images", help="folder of the pictures that a table names")
    parser.add_argument("--caption-column", help="column of the captions")
    parser.add_argument("--image-column", help="column of the picture files")
    parser.add_argument("--label-column", help="column of the classes")
    parser.add_argument("--on-error", choices=("raise", "count"), default="raise", help="at a picture that is damaged")
    parser.add_argument("--names", metavar="FILE", help="classify: JSON object, class -> what it is called")
    parser.add_argument(
        "--facets", default="mean", help='retrieval: mean (default), each, max, or numbers such as "0,3"'
    )
    parser.add_argument(
        "--captions-template", default="long", help="retrieval: template of the captions (default: long)"
    )
    parser.add_argument("--store", help="retrieval: read text embeddings from this store instead of the language model")
    parser.add_argument("--test", metavar="DATA", help="probe: test pictures (default: a random half)")
    parser.add_argument("--seed", type=int, default=0, help="probe: of the halves and of the training")
    parser.add_argument("--batch-size", type=positive, default=64, help="pictures per pass (default: 64)")
    add_phrases(parser)
    add_model(parser)
    return parser


def _features(
    model: FlameImageEncoder, arguments: argparse.Namespace, place: str, kind: Any = "embedding"
) -> tuple[ImageFeatures, dict[str, Any]]:
    from mm.encoders.flame.evaluation import image_features, open_source

    source = open_source(
        place,
        images=arguments.images,
        caption=arguments.caption_column,
        image=arguments.image_column,
        label=arguments.label_column,
        on_error=arguments.on_error,
    )
    bar = progress("pictures", 0)
    found = image_features(model, source, kind=kind, batch_size=arguments.batch_size, progress=bar)
    return found, {"unreadable": len(source.errors)} if source.errors else {}


def _classify(model: FlameImageEncoder, arguments: argparse.Namespace) -> dict[str, Any]:
    from mm.encoders.flame.evaluation import class_vectors, zero_shot

    found, bad = _features(model, arguments, arguments.data)
    labels, classes = found.labelled()
    names = read_json(arguments.names) if arguments.names else {label: label for label in classes}
    missing = [label for label in classes if label not in names]
    if missing:
        raise ValueError(f"{arguments.names}: says nothing about the class {missing[0]!r} ({len(missing)} are missing)")
    called = [str(names[label]) for label in classes]
    tower = text_tower(model, arguments)
    vectors = class_vectors(tower, called, chosen_phrases(arguments), template=arguments.template).cpu()
    return zero_shot(found.vectors, labels, vectors) | bad


def _retrieve(model: FlameImageEncoder, arguments: argparse.Namespace) -> dict[str, Any]:
    from mm.encoders.flame.evaluation import retrieval, text_scores

    found, bad = _features(model, arguments, arguments.data)
    images, captions, owner, without = found.captioned()
    facets = arguments.facets
    if facets not in ("mean", "each", "max"):
        facets = [int(number) for number in facets.split(",") if number.strip().isdigit()]
        if ",".join(map(str, facets)) != arguments.facets.replace(" ", ""):
            raise ValueError(f"--facets must be mean, each, max or numbers such as 0,3; got {arguments.facets!r}")
    scores = text_scores(images, _texts(model, arguments, captions), facets)
    words = sorted(len(caption.split()) for caption in captions)
    counts = {"without_caption": without, "median_words": words[len(words) // 2]}
    return retrieval(scores, owner) | counts | bad


def _texts(model: FlameImageEncoder, arguments: argparse.Namespace, captions: list[str]) -> Tensor:
    """Un-normalised facet embeddings, (T, K, D)."""
    from mm.encoders.flame.store import FacetStore

    if arguments.store is None:
        return text_tower(model, arguments).encode(captions, template=arguments.captions_template).float().cpu()
    store = FacetStore(arguments.store, template=arguments.captions_template)
    fitting_store(store, model, arguments)
    missing = store.cache.missing(captions)
    if missing:
        raise ValueError(
            f"{arguments.store}: {len(missing)} of the captions are not in this store, the first is "
            f"{missing[0][:60]!r}; embed them with mm flame embed, or leave out --store"
        )
    return store.rows(captions).float() * store.norms(captions)[..., None]


def _probe(model: FlameImageEncoder, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    from mm.encoders.flame.evaluation import ProbeConfig, linear_probe

    config = ProbeConfig(seed=arguments.seed)
    train, bad = _features(model, arguments, arguments.data, "visual_only")
    labels, classes = train.labelled()
    if arguments.test is None:
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(arguments.seed))
        first, second = order[::2], order[1::2]
        vectors = train.vectors
        return linear_probe(vectors[first], labels[first], vectors[second], labels[second], config) | bad
    test, more_bad = _features(model, arguments, arguments.test, "visual_only")
    unknown = sorted(set(test.labels) - set(classes))
    if unknown:
        raise ValueError(f"{arguments.test}: has classes that {arguments.data} lacks: {', '.join(unknown[:10])}")
    numbers = torch.tensor([classes.index(label) for label in test.labels])
    unreadable = {"unreadable": sum(part.get("unreadable", 0) for part in (bad, more_bad))} if bad or more_bad else {}
    return linear_probe(train.vectors, labels, test.vectors, numbers, config) | unreadable


TASKS = {"classify": _classify, "retrieval": _retrieve, "probe": _probe}
"""Name of the task -> what measures it."""
