"""Documents about scenes that nobody sees: a caption, then questions that the caption answers.

Dims: n tokens of a document.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mm.data.captions import clip_caption, long_caption, short_caption
from mm.data.frames import ClipConfig, direction_question, sample_clip
from mm.data.lookups import encode
from mm.data.questions import EASY_KINDS, ask
from mm.data.scenes import Scene, SceneConfig, sample_scene
from mm.data.words import DIRECTIONS, GROUND_PATTERNS, SHAPES

TURN = "question: {question} answer: {answer}<eos>"
CAPTIONED = SceneConfig(max_things=5)
MOVING = ClipConfig(size=8, num_frames=2, shapes=SHAPES, patterns=GROUND_PATTERNS)
LONGEST_TURN = 24
"""More tokens than any turn about a scene has."""


def _captioned(rng: np.random.Generator, budget: int) -> tuple[Scene, np.ndarray]:
    """A scene and a long caption that fits, leaving out things where it does not; a short one at worst."""
    scene = sample_scene(rng, CAPTIONED)
    while True:
        caption = encode(long_caption(scene, rng))
        if len(caption) <= budget:
            return scene, caption
        if len(scene.things) == 1:
            return scene, encode(short_caption(scene, rng))
        scene = replace(scene, things=scene.things[:-1])


def described(rng: np.random.Generator, budget: int) -> np.ndarray:
    """A long caption, then different questions until the budget is used up, (n,) int64."""
    scene, caption = _captioned(rng, budget - LONGEST_TURN)
    parts, asked = [caption], set()
    used = len(caption)
    for _ in range(4 * len(EASY_KINDS)):
        question = ask(scene, rng)
        if question.question in asked:
            continue
        turn = encode(TURN.format(question=question.question, answer=question.answer))
        if used + len(turn) > budget:
            break
        asked.add(question.question)
        parts.append(turn)
        used += len(turn)
    return np.concatenate(parts)


def captions(rng: np.random.Generator, budget: int) -> np.ndarray:
    """Plain sentences: captions of scenes one after the other, each closed by `<eos>`, (n,) int64."""
    parts: list[np.ndarray] = []
    room = budget
    while True:
        scene = sample_scene(rng, CAPTIONED)
        caption = encode(f"{short_caption(scene, rng) if rng.random() < 0.5 else long_caption(scene, rng)}<eos>")
        if len(caption) > room:
            if parts:
                return np.concatenate(parts)
            continue
        parts.append(caption)
        room -= len(caption)


def moving(rng: np.random.Generator, budget: int) -> np.ndarray:
    """The caption of a clip and the question about the direction, (n,) int64."""
    axis = DIRECTIONS[:2] if rng.random() < 0.5 else DIRECTIONS[2:]
    config = replace(MOVING, directions=axis if rng.random() < 0.5 else DIRECTIONS)
    clip = sample_clip(rng, config)
    turn = TURN.format(question=direction_question(config, clip.thing.shape), answer=clip.direction)
    ids = encode(f"{clip_caption(clip, rng)} {turn}")
    assert len(ids) <= budget, "a clip and its question fit in the shortest row"
    return ids


SCENE_DOCUMENTS = {"described": described, "captions": captions, "moving": moving}
"""Kind of document -> writer `f(rng, budget)`."""
