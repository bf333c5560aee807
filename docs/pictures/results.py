"""The README's picture: `python docs/pictures/results.py` runs four shipped demonstrations and draws what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import mm

OUT = Path(__file__).with_name("results.png")


def main() -> None:
    """Four panels, one per method, each from its own weights on a held-out picture."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.5))
    for axis, panel in zip(axes, (lavi, flowcut, visionthink, flame), strict=True):
        panel(axis)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout()
    figure.savefig(OUT, dpi=110)
    print(OUT)


def lavi(axis: Any) -> None:
    """Where the place looks that the answer is read from."""
    from mm.app.ui import over_picture
    from mm.encoders.lavi.diagnostics import word_looks
    from mm.zoo.evaluate import held_out_boards

    model: Any = mm.load("lavi_tiny")
    sample = held_out_boards(0, 1)[0]
    look = word_looks(model, sample.images[0], sample.question)[-1]
    axis.imshow(over_picture(sample.images[0], look.attention.numpy()))
    _title(axis, "LaVi: where the answer is read", f"{sample.question}  {model.ask(sample.images, sample.question)}")


def flowcut(axis: Any) -> None:
    """The patches that are left of 256."""
    from mm.pruning import FlowCut
    from mm.zoo.evaluate import held_out_wide_scenes

    model: Any = mm.load("llava_tiny_256")
    sample = held_out_wide_scenes(0, 1)[0]
    pruner = FlowCut(target_tokens=28, schedule="last")
    pixels = model.prepare(sample.images, sample.question)["pixel_values"]
    kept = pruner.encode(model.tower, pixels).keep_indices[0].numpy()
    shown = np.full(model.tower.num_tokens, 0.2)
    shown[kept] = 1
    side = sample.images[0].shape[0] // model.tower.grid[0]
    mask = np.kron(shown.reshape(model.tower.grid), np.ones((side, side)))[..., None]
    axis.imshow((sample.images[0] * mask + 255 * (1 - mask)).astype(np.uint8))
    with pruner.attach(model):
        answer = model.ask(sample.images, sample.question)
    _title(axis, f"FlowCut: {len(kept)} of {model.tower.num_tokens} tokens stay", f"{sample.question}  {answer}")


def visionthink(axis: Any) -> None:
    """First look and, as the model asked for it, the full picture."""
    from mm.pruning.visionthink.evaluate import held_out

    model: Any = mm.load("visionthink_tiny")
    sample = next(sample for sample in held_out(4, 1) if sample.kind == "hard")
    generate = model.generator()
    found = generate(sample.image, sample.question)
    pair = [
        np.asarray(image.resize((128, 128), Image.Resampling.NEAREST)) for image in generate.policy.pair(sample.image)
    ]
    axis.imshow(np.concatenate([pair[0], np.full((128, 8, 3), 255, np.uint8), pair[1]], axis=1))
    asked = "asks for more" if found.called else "answers at once"
    _title(axis, f"VisionThink: first look, {asked}", f"{sample.question}  {found.answer}")


def flame(axis: Any) -> None:
    """Held-out scenes with the names that free text gave them."""
    import torch

    from mm.app.tabs.search import PHRASES
    from mm.data.words import COLOURS, SHAPES
    from mm.encoders.flame.evaluation import class_vectors
    from mm.encoders.flame.pairs import scene_pairs
    from mm.encoders.flame.tower import load_text_tower
    from mm.encoders.flame.trial import ONE_THING

    model: Any = mm.load("flame_tiny")
    labels = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    classes = class_vectors(load_text_tower(model.config.text), labels, PHRASES.splitlines(), template="short")
    images = list(scene_pairs("test", 4, scenes=ONE_THING, size=48).images)
    with torch.inference_mode():
        names = [labels[k] for k in (model(model.processor(images)) @ classes.T).argmax(dim=1).tolist()]
    axis.imshow(np.concatenate([np.concatenate(images[:2], 1), np.concatenate(images[2:], 1)], 0))
    for number, name in enumerate(names):
        axis.text(48 * (number % 2) + 2, 48 * (number // 2) + 46, name, fontsize=8, backgroundcolor="white")
    _title(axis, "FLAME: named by free text", f"64 labels compete, chance is 1/{len(labels)}")


def _title(axis: Any, name: str, said: str) -> None:
    axis.set_title(name, fontsize=10, loc="left", fontweight="bold")
    axis.set_xlabel(said, fontsize=9)


if __name__ == "__main__":
    main()
