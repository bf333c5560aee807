"""Search: FLAME names a picture with labels in free text, facet by facet, and finds pictures by a description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mm.app.guard import guarded, quiet
from mm.app.models import shelf
from mm.app.ui import gradio, model_input, needed, own_folder, picture_input, results, save_picture

MODELS = ("flame_tiny",)
LABELS = "red circle, blue diamond, yellow circle, orange ring, pink square, green star"
PHRASES = "\n".join(f"a picture of a {{}} on a {ground} background." for ground in ("white", "grey", "black", "sand"))
QUERY = "a picture of a yellow circle on a white background."
SCENES = 24
"""Pictures of the collection that is searched when nobody gives one."""
SHOWN = 6


def build() -> None:
    """The tab's components and what they do."""
    gr = gradio()
    shown = examples(own_folder())
    gr.Markdown("### Name a picture")
    with gr.Row():
        with gr.Column():
            picture = picture_input("search", value=shown[0][0])
            labels = gr.Textbox(LABELS, label="Labels, separated by commas", elem_id="search_labels")
            phrases = gr.Textbox(PHRASES, label="Sentences around a label, one per line with {}", lines=4)
            name = gr.Button("Name it", variant="primary", elem_id="search_run")
            gr.Examples(shown, [picture], label="Held-out scenes")
        with gr.Column():
            likely = gr.Label(label="Probability among these labels", elem_id="search_result", num_top_classes=6)
            facets = gr.HTML(label="Facets", elem_id="search_facets")
    gr.Markdown("### Find pictures")
    with gr.Row():
        with gr.Column():
            query = gr.Textbox(QUERY, label="Description", elem_id="search_query")
            files = gr.File(label="Your pictures (empty: 24 held-out scenes)", file_count="multiple")
            find = gr.Button("Find", variant="primary", elem_id="search_find")
        gallery = gr.Gallery(label="Nearest first", columns=3, height="auto", elem_id="search_found")
    with gr.Accordion("Real weights", open=False):
        model = model_input("search", MODELS)
    name.click(guarded(classify), [picture, labels, phrases, model], [likely, facets], api_name="classify")
    find.click(guarded(search), [query, files, model], [gallery], api_name="find")
    query.submit(guarded(search), [query, files, model], [gallery], api_visibility="private")


def classify(
    picture: str | None, labels: str, phrases: str, model: str, progress: Any = quiet
) -> tuple[dict[str, float], str]:
    """Probabilities of the labels, and the nearest label through each facet of the text tower.

    Args:
        picture: Path of a picture.
        labels: Separated by commas or lines.
        phrases: Sentences with {} for the label, one per line.
        model: Name, folder or hub id of a FLAME image encoder; its language model is read, too.
        progress: Told what is being done.

    Raises:
        ValueError: no picture, no label, a sentence without {}, or a file or model that cannot be read.
    """
    from mm.encoders.flame.evaluation import class_vectors
    from mm.vision import load_image

    names = [part.strip() for part in labels.replace("\n", ",").split(",") if part.strip()]
    needed(names or None, "at least one label")
    sentences = [line.strip() for line in phrases.splitlines() if line.strip()]
    image = load_image(needed(picture, "a picture"))
    progress(0, desc="reading the labels")
    with shelf.lent(model, _encoder) as (encoder, tower):
        vector = _embedded(encoder, [image])[0]  # (D,)
        classes = class_vectors(tower, names, sentences, template="short").cpu()
        cosines = classes @ vector
        shares = (cosines * encoder.logit_scale.detach().exp().cpu()).softmax(0)
        rows = _through_facets(tower, vector, names, sentences)
    caption = "The nearest label when texts are read through one facet alone."
    return dict(zip(names, shares.tolist(), strict=True)), results(rows, caption)


def _through_facets(tower: Any, vector: Any, names: list[str], sentences: list[str]) -> list[dict[str, Any]]:
    """Rows {facet, nearest, cosine}: each facet asks another thing about the text."""
    import torch
    from torch.nn import functional as F

    texts = [sentence.replace("{}", name) for name in names for sentence in sentences]
    embedded = F.normalize(tower.encode(texts, template="short").float().cpu(), dim=-1)  # (C * T, K, D)
    by_label = torch.stack(embedded.split(len(sentences))).mean(dim=1)  # (C, K, D)
    cosines = F.normalize(by_label, dim=-1) @ vector  # (C, K)
    best = cosines.max(dim=0)
    return [
        {"facet": facet, "nearest": names[index], "cosine": cosine}
        for facet, index, cosine in zip(_questions(tower), best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _questions(tower: Any) -> list[str]:
    """What each facet asks; a sentence model has one embedding and asks nothing."""
    if not hasattr(tower, "templates"):
        return ["the sentence"]
    return [facet.replace("question:", "").replace("answer:", "").strip() for facet in tower.templates["short"].facets]


def search(query: str, files: list[str] | None, model: str, progress: Any = quiet) -> list[tuple[Any, str]]:
    """The pictures nearest to a description, with their cosines.

    Args:
        query: The description.
        files: Paths of pictures; held-out scenes if there are none.
        model: As for `classify`.
        progress: Told what is being done.

    Raises:
        ValueError: no description, or a file or model that cannot be read.
    """
    from mm.vision import load_image

    needed(query, "a description")
    images = [load_image(source) for source in (files or _scenes(SCENES))]
    progress(0, desc=f"embedding {len(images)} pictures")
    with shelf.lent(model, _encoder) as (encoder, tower):
        vectors = _embedded(encoder, images)  # (P, D)
        template = "long" if hasattr(tower, "templates") else "single"
        text = tower.encode([query], template=template, reduce="mean", normalize=True).float().cpu()[0]
    cosines, order = (vectors @ text).sort(descending=True, stable=True)
    best = list(zip(cosines.tolist(), order.tolist(), strict=True))[:SHOWN]
    return [(images[index], f"{cosine:.2f}") for cosine, index in best]


def _encoder(name: str) -> tuple[Any, Any]:
    """An image encoder with the text tower that it was trained against."""
    from mm.encoders.flame.model import FlameImageEncoder
    from mm.encoders.flame.tower import load_text_tower

    encoder = FlameImageEncoder.from_pretrained(name).eval()
    return encoder, load_text_tower(encoder.config.text)


def _embedded(encoder: Any, images: list[Any]) -> Any:
    """Unit vectors of pictures, (P, D)."""
    import torch

    with torch.inference_mode():
        return encoder(encoder.processor(images)).float().cpu().clone()


def _scenes(count: int) -> list[Any]:
    """Scenes with one large thing that training never saw, (H, W, 3) uint8 each."""
    from mm.encoders.flame.pairs import scene_pairs
    from mm.encoders.flame.trial import ONE_THING

    return list(scene_pairs("test", count, scenes=ONE_THING, size=48, first=0).images)


def examples(folder: Path) -> list[list[str]]:
    """Pictures to name: [[path], …]."""
    return [[save_picture(image, folder / f"{number}.png")] for number, image in enumerate(_scenes(6))]
