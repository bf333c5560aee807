"""E-ViLM's page of the tour: what codes see, which clip fits a sentence, and which way a thing moves."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mm.checkpoint import load
from mm.codecs.semantic_vq.evaluate import evaluate as evaluate_codes
from mm.codecs.semantic_vq.tokenizer import SemanticVQTokenizer
from mm.data import Split
from mm.encoders.evilm.data import held_out_clips
from mm.encoders.evilm.evaluate import evaluate, frames_of
from mm.encoders.evilm.model import EViLM
from mm.encoders.evilm.presets import evilm_tiny
from mm.encoders.evilm.scenes import SHIFTED, MovingClip, MovingConfig, moving_clip

if TYPE_CHECKING:
    from mm.app.report import Page

MODEL, TOKENIZER, CONTROL = "evilm_tiny", "semantic_vq_tiny", "semantic_vq_tiny_pixels"
PICTURES = 192
"""Held-out pictures per score of a tokenizer; `mm zoo verify` takes more."""
ROUNDS = 2
"""Clips per held-out combination."""
SHOWN = 5
"""Sentences of the retrieval table."""


def page(page: Page) -> None:
    """Fill the page."""
    model, tokenizer, control = load(MODEL), load(TOKENIZER), load(CONTROL)
    if not isinstance(model, EViLM):
        raise TypeError(f"{MODEL} must be an EViLM")
    if not isinstance(tokenizer, SemanticVQTokenizer) or not isinstance(control, SemanticVQTokenizer):
        raise TypeError(f"{TOKENIZER} and {CONTROL} must be semantic tokenizers")
    page.text(
        "A small video-language model learns by naming what is hidden. Cells of a clip are blanked, and the model "
        "predicts the code that a frozen tokenizer gives each of them. The codes must carry meaning for that to teach "
        "anything. All clips below show combinations of colour, shape and direction that training left out."
    )
    _codes(page, tokenizer, control)
    clips = [clip for number in range(ROUNDS) for clip in held_out_clips(ROUNDS * page.seed + number)]
    scores = evaluate(model, seed=page.seed, rounds=ROUNDS, tokenizer=tokenizer)
    chance = evaluate(evilm_tiny(), seed=page.seed, rounds=1, tokenizer=tokenizer)
    _retrieval(page, model, clips[: len(clips) // ROUNDS], scores, chance)
    _direction(page, model, clips, scores)
    page.heading("Naming what is hidden")
    page.table(
        [
            {"caption": "the clip's own", "codes named right": scores["masked_codes"]},
            {"caption": "another clip's", "codes named right": scores["masked_codes_other_caption"]},
            {"caption": "none: the most frequent code", "codes named right": scores["masked_codes_most_frequent"]},
        ],
        "Every cell that the thing touches is hidden in all frames; its colour and shape are only in the words",
        key="masked_codes",
    )


def _codes(page: Page, tokenizer: SemanticVQTokenizer, control: SemanticVQTokenizer) -> None:
    import matplotlib.pyplot as plt

    page.heading("What a code sees")
    seed = Split("test").seed(page.seed)
    plain = moving_clip(seed, MovingConfig(textures=("plain",), patterns=("plain",), pairs="all"))
    checked = moving_clip(seed, replace(SHIFTED, pairs="all"))
    figure, axes = plt.subplots(3, 2 * len(plain.frames), figsize=(12, 4.8))
    frames = np.concatenate([plain.frames, checked.frames])
    maps = [_map(one, [plain, checked]) for one in (tokenizer, control)]
    for column in range(len(frames)):
        axes[0, column].imshow(frames[column], interpolation="nearest")
        for row, drawn in enumerate(maps, 1):
            axes[row, column].imshow(drawn[column] % 20, cmap="tab20", vmin=0, vmax=19, interpolation="nearest")
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    for row, name in enumerate(("frames", "semantic codes", "codes of pixels")):
        axes[row, 0].set_ylabel(name)
    page.figure(
        figure,
        f"{plain.caption}: left half plain, right half under a texture and a pattern that training never showed. "
        "One colour per code (256 codes share 20 colours).",
    )
    rows = []
    for name, one in (("semantic: rebuilds an oracle's features", tokenizer), ("control: rebuilds pixels", control)):
        found = evaluate_codes(one, seed=page.seed, count=PICTURES)
        rows.append({"tokenizer": name, **{key: value for key, value in found.items() if key != "cosine"}})
    page.table(
        rows,
        "Colour and shape read off the code of a patch (1 of 64); `shifted` is the unseen texture; `same_code` is the "
        "share of codes that stay when only the texture changes",
        key="codes",
    )


def _map(tokenizer: SemanticVQTokenizer, clips: list[MovingClip]) -> np.ndarray:
    """(frames, h, w)."""
    return tokenizer.encode(frames_of(clips)).flatten(0, 1).numpy()


def _retrieval(
    page: Page, model: EViLM, clips: list[MovingClip], scores: dict[str, float], chance: dict[str, float]
) -> None:
    page.heading("Which clip fits the sentence?")
    shown = clips[:: len(clips) // SHOWN][:SHOWN]
    with torch.no_grad():
        video = model.encode_video(frames_of(clips).float() / 255)
        text = model.encode_text(**model.tokenize([clip.caption for clip in shown]))
        best = model.score_all(video, text, chunk_size=512).argmax(0).tolist()
    rows: list[dict[str, Any]] = [
        {"sentence": clip.caption, "best of 64 clips shows": clips[index].caption}
        for clip, index in zip(shown, best, strict=True)
    ]
    page.picture(
        np.concatenate([np.concatenate(clips[index].frames, 1) for index in best], 0),
        "The clips that were found, one per row, four frames each.",
        scale=2,
    )
    page.table(rows, "Sentences and what was found", key="found")
    names = [name for name in scores if "_r1" in name]
    page.table(
        [{"score": name, "trained": scores[name], "random weights": chance[name]} for name in names],
        "R@1 among 64 clips, one of each held-out combination; guessing finds 0.016",
        key="retrieval",
    )


def _direction(page: Page, model: EViLM, clips: list[MovingClip], scores: dict[str, float]) -> None:
    page.heading("Which way does it move?")
    asked = []
    for clip in clips[:: len(clips) // 4][:4]:
        question, right = clip.ask("choice")
        values = frames_of([clip])[0].float() / 255
        asked.append(
            {
                "clip": clip.caption,
                "question": question,
                "answer": model.answer(values, question)[0][0],
                "frames backwards": model.answer(values.flip(0), question)[0][0],
                "right": right,
            }
        )
    page.table(asked, "Answers to a clip and to the same clip played backwards", key="answers")
    names = {
        "left_or_right": "four frames",
        "left_or_right_one_frame": "one frame of them",
        "left_or_right_shuffled": "four frames in random order",
    }
    rows = [{"what is seen": about, "right": scores[name]} for name, about in names.items()]
    page.table(rows, "Left or right, up or down: two choices, so guessing gives 0.5", key="direction")
    kinds = ("direction", "shape", "colour", "size")
    page.table(
        [{"question": kind, "right": scores[kind]} for kind in kinds],
        "Open questions, 22 possible answers",
        key="questions",
    )
