"""The README's picture: `python docs/pictures/results.py` runs eight shipped demonstrations and draws what they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import mm
from mm.data.split import Split

OUT = Path(__file__).with_name("results.png")


def main() -> None:
    """Eight panels, one per method, each from its own weights on something held out."""
    figure, axes = plt.subplots(2, 4, figsize=(13, 7.2))
    panels = (lavi, flowcut, visionthink, flame, evilm, semanticodec, velvet, openecad)
    for axis, panel in zip(axes.flat, panels, strict=True):
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


def evilm(axis: Any) -> None:
    """Frames of a clip, the same under the colours of their codes, and an answer that needs their order."""
    from mm.codecs.semantic_vq.picture import over_frames
    from mm.encoders.evilm.evaluate import frames_of, held_out_clips

    model, tokenizer = mm.load("evilm_tiny"), mm.load("semantic_vq_tiny")
    clip = held_out_clips(0)[0]
    frames, codes = np.stack(clip.frames), tokenizer.encode(frames_of([clip]))[0].numpy()  # type: ignore[operator]
    rows = [np.concatenate(over_frames(frames, codes, side=128, strength=share), 1) for share in (0.0, 0.55)]
    axis.imshow(np.concatenate(rows, 0), aspect="equal")
    question, _ = clip.ask("choice")
    answer = model.answer(frames_of([clip])[0].float() / 255, question)[0][0]  # type: ignore[operator]
    _title(axis, "E-ViLM: frames and their codes", f"{question}  {answer}")


def semanticodec(axis: Any) -> None:
    """Spectrograms of a made sound and of what its tokens decode to."""
    from mm.codecs.semanticodec.decoder import Sampling
    from mm.codecs.semanticodec.evaluate import held_out
    from mm.codecs.semanticodec.mel import LogMel
    from mm.codecs.semanticodec.round_trip import round_trip

    codec: Any = mm.load("semanticodec_tiny")
    wave = held_out(codec, 0, 3)["waves"][2, : codec.config.encoder.segment_samples]
    trip = round_trip(codec, wave, Sampling(seed=0))
    mel = LogMel(codec.config.decoder.vae.mel_bins)
    source, decoded = (mel(wave[None])[0].T.numpy()[::-1] for wave in (trip.source, trip.decoded))
    line = np.full((2, source.shape[1]), source.max())
    axis.imshow(np.concatenate([source, line, decoded]), cmap="magma", aspect="auto")
    said = f"above the source; below from tokens, {codec.bitrate:.0f} bit/s"
    _title(axis, "SemantiCodec: sound as tokens", said)


def velvet(axis: Any) -> None:
    """A slice of a phantom with the organs that were found."""
    from mm.medical import Volume
    from mm.medical.phantoms import draw_case, render
    from mm.medical.volumes.panel import COLOURS, plane
    from mm.medical.volumes.windows import WINDOWS

    model: Any = mm.load("velvet_tiny")
    scan = render(draw_case(Split("test").seed(0)), 96)
    labels = plane(model.segment(Volume.from_array(scan.hu, scan.affine)).native, "coronal", 48)
    axis.imshow(plane(WINDOWS["soft_tissue"](scan.hu), "coronal", 48), cmap="gray")
    for label in np.unique(labels[labels > 0]):
        axis.contourf(labels == label, levels=[0.5, 1.5], colors=[COLOURS[int(label) % len(COLOURS)]], alpha=0.45)
    _title(axis, "VELVET-Med: organs of a drawn phantom", "seven organs, no patient")


def openecad(axis: Any) -> None:
    """A picture of a part, and the solid that its generated program builds."""
    from mm.cad import build, parse, render
    from mm.cad.data import draw_part
    from mm.cad.procedural import TINY

    model: Any = mm.load("openecad_tiny")
    picture = draw_part(Split("test").seed(4), TINY)
    (answers,) = model.propose([picture], constrained=True)
    program = parse(answers[0].text)
    drawn = render(build(program, kernel="mesh"), size=256)
    seen = np.asarray(Image.fromarray(picture).convert("RGB").resize((256, 256), Image.Resampling.NEAREST))
    axis.imshow(np.concatenate([seen, drawn], axis=1))
    lines = len(answers[0].text.splitlines())
    _title(axis, "OpenECAD: a picture, its program built", f"{lines} lines, {len(program.extrudes)} extrudes")


def _title(axis: Any, name: str, said: str) -> None:
    axis.set_title(name, fontsize=10, loc="left", fontweight="bold")
    axis.set_xlabel(said, fontsize=9)


if __name__ == "__main__":
    main()
