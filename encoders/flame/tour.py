"""FLAME's page of the tour: naming and finding pictures, what single facets know, words over patches, costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor

from mm.checkpoint import load
from mm.data.tokenizer import word_ids
from mm.data.words import COLOURS, SHAPES
from mm.encoders.flame.evaluation import class_vectors, retrieval, text_scores
from mm.encoders.flame.flops import rows as flops_rows
from mm.encoders.flame.latency import rows as latency_rows
from mm.encoders.flame.model import FlameImageEncoder
from mm.encoders.flame.pairs import SCENES, Pairs, scene_pairs
from mm.encoders.flame.readout import word_scores
from mm.encoders.flame.text import FacetTextEncoder
from mm.encoders.flame.tower import load_text_tower
from mm.encoders.flame.trial import COLOUR_PHRASES, ONE_THING, PAIRS, SHAPE_PHRASES, embed_pictures, scores

if TYPE_CHECKING:
    from mm.app.report import Page

SHOWN = 6
CHANCE = {"shape_zero_shot": 1 / 8, "colour_zero_shot": 1 / 8, "digit_zero_shot": 1 / 10}


def page(page: Page) -> None:
    """Fill the page."""
    model = load("flame_tiny")
    if not isinstance(model, FlameImageEncoder):
        raise TypeError("flame_tiny must be a FLAME image encoder")
    tower: Any = load_text_tower(model.config.text)
    page.text(
        "FLAME trains an image encoder against a frozen language model. Every caption is followed by short questions, "
        "and the hidden state at the end of each question is one text embedding. The embeddings are computed once; "
        "training never runs the language model. Below, tiny_lm has read captions of scenes and of scanned digits, and "
        "a vision transformer of 0.3 million parameters has learned from nothing else."
    )
    _scores(page, model, tower)
    single = scene_pairs("test", SHOWN, scenes=ONE_THING, size=model.tower.image_size[0], first=page.seed * SHOWN)
    _named(page, model, tower, single)
    _facets(page, model, tower)
    _words(page, model, tower, single)
    _costs(page)


def _scores(page: Page, model: FlameImageEncoder, tower: FacetTextEncoder) -> None:
    page.heading("Naming and finding held-out pictures")
    found = scores(model, tower, seed=page.seed, count=2 * PAIRS)
    rows = [{"test": name, "chance": CHANCE.get(name, 1 / PAIRS), "found": value} for name, value in found.items()]
    page.table(rows, f"Zero-shot accuracy, and R@1 among {PAIRS} scenes by their long captions", key="scores")


def _named(page: Page, model: FlameImageEncoder, tower: FacetTextEncoder, pairs: Pairs) -> None:
    import matplotlib.pyplot as plt

    page.heading("Zero-shot names")
    vectors = embed_pictures(model, pairs.images)
    guesses = [
        [names[k] for k in (vectors @ class_vectors(tower, names, phrases, template="short").cpu().T).argmax(dim=1)]
        for names, phrases in ((tuple(COLOURS), COLOUR_PHRASES), (SHAPES, SHAPE_PHRASES))
    ]
    figure, axes = plt.subplots(1, len(pairs), figsize=(2.1 * len(pairs), 2.6))
    for axis, image, label, colour, shape in zip(axes, pairs.images, pairs.labels, *guesses, strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(f"{colour} {shape}\nright: {label}", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    page.figure(figure, "Colour and shape are chosen apart, each among eight words.")


def _facets(page: Page, model: FlameImageEncoder, tower: FacetTextEncoder) -> None:
    """Retrieval through each facet alone, and through their mean."""
    page.heading("What each facet knows")
    size = model.tower.image_size[0]
    pairs = scene_pairs("test", PAIRS, scenes=SCENES, size=size, first=page.seed * PAIRS)
    pictures = embed_pictures(model, pairs.images)
    texts = tower.encode([caption.long for caption in pairs.captions], "long").float().cpu()  # (B, K, D)
    asked = [facet.replace(" question: ", "").replace(" answer:", "") for facet in tower.templates["long"].facets]
    rows = [{"facet": name, **_r1(pictures, texts, [k])} for k, name in enumerate(asked)]
    rows.append({"facet": "mean of all", **_r1(pictures, texts, "mean")})
    page.table(rows, f"R@1 among {PAIRS} scenes when texts are read through one facet, and through all", key="facets")


def _r1(pictures: Tensor, texts: Tensor, facets: Any) -> dict[str, float]:
    found = retrieval(text_scores(pictures, texts, facets), torch.arange(len(pictures)), ks=(1,))
    return {name: found[name] for name in ("image_to_text_r1", "text_to_image_r1")}


def _words(page: Page, model: FlameImageEncoder, tower: FacetTextEncoder, pairs: Pairs) -> None:
    """The best colour or shape word of every patch, written over the picture."""
    import matplotlib.pyplot as plt

    page.heading("Words over patches")
    words = (*COLOURS, *SHAPES)
    pixels = model.processor(list(pairs.images[:3]))
    with torch.no_grad():
        best = word_scores(tower.backbone, model.patches(pixels), [word_ids()[word] for word in words]).argmax(dim=-1)
    grids = rearrange(best, "b (h w) -> b h w", h=model.tower.grid[0])
    figure, axes = plt.subplots(1, len(grids), figsize=(4.2 * len(grids), 4.2))
    side = model.tower.patch_size[0]
    for axis, image, grid in zip(axes, pairs.images, grids, strict=False):
        axis.imshow(image, interpolation="nearest", alpha=0.55)
        for row, line in enumerate(grid.tolist()):
            for column, word in enumerate(line):
                place = ((column + 0.5) * side, (row + 0.5) * side)
                axis.text(*place, words[word], fontsize=7, ha="center", va="center")
        axis.set_xticks([])
        axis.set_yticks([])
    page.figure(figure, "The language model's own head reads the image encoder's patches: the best of 16 words each.")


def _costs(page: Page) -> None:
    page.heading("One pass for all facets")
    page.table(flops_rows(), "Mistral-Nemo to block 39, one pass against seven, TFLOP per caption", key="flops")
    page.table(latency_rows(repeats=5), "Measured on a random language model, candidates taking turns", key="latency")
    page.text(
        "The masked pass computes the prefix once; what remains of the seven passes are the facets themselves. Time "
        "follows the operations less closely at toy sizes, where every call costs the same few microseconds."
    )
