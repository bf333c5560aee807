"""The procedural tasks by name, each a pure function from seed to sample, and their mixture.

Which task a seed belongs to is drawn from the seed as well, so a mixture is as reproducible as its parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mm.data.boards import BoardConfig, board_sample
from mm.data.captions import clip_caption, long_caption, short_caption
from mm.data.frames import ClipConfig, clip_sample, sample_clip
from mm.data.lookups import decode, inline_question
from mm.data.phrasing import Phrasing
from mm.data.questions import EASY_KINDS, detail_sample, scene_sample
from mm.data.sample import VisualSample
from mm.data.scenes import SceneConfig, render, sample_scene
from mm.data.split import generator
from mm.data.text import TextConfig, document
from mm.data.tiles import TileConfig, tile_sample

DESCRIBE = "describe the picture."
DESCRIBE_CLIP = "describe the clip."


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What the tasks show and ask."""

    boards: BoardConfig = field(default_factory=BoardConfig)
    """Boards of the task `boards`."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    """Scenes of the tasks `scenes`, `captions` and `long_captions`, and the pictures of `irrelevant`."""
    scene_size: int = 64
    """Side of a drawn scene in pixels."""
    kinds: tuple[str, ...] = EASY_KINDS
    """Kinds of questions about scenes."""
    scene_turns: int = 1
    """Questions per scene; all but the last are earlier turns of its conversation."""
    detail: SceneConfig = field(default_factory=lambda: SceneConfig(marks=True))
    """Scenes of the task `detail`, drawn at their full size."""
    clips: ClipConfig = field(default_factory=ClipConfig)
    """Clips of the tasks `clips` and `clip_captions`."""
    tiles: TileConfig = field(default_factory=TileConfig)
    """Tiles of the task `tiles`."""
    text: TextConfig = field(default_factory=TextConfig)
    """Documents of the task `text`."""
    text_length: int = 256
    """Most tokens of a document of the task `text`."""
    facts: int = 6
    """Most facts in a question of the task `irrelevant`."""
    filler: int = 0
    """Words without information in front of a long caption."""
    phrasing: Phrasing = "seen"
    """Wordings of questions and captions: without the held-out ones, only those, or all."""


def _scene(seed: int, config: TaskConfig) -> VisualSample:
    return scene_sample(
        seed,
        config.scenes,
        size=config.scene_size,
        kinds=config.kinds,
        phrasing=config.phrasing,
        turns=config.scene_turns,
    )


def _captioned(seed: int, config: TaskConfig, caption: str) -> VisualSample:
    image = render(sample_scene(seed, config.scenes), config.scene_size)
    return VisualSample([image], DESCRIBE, caption, caption, {"seed": seed})


def _caption(seed: int, config: TaskConfig) -> VisualSample:
    scene = sample_scene(seed, config.scenes)
    return _captioned(seed, config, short_caption(scene, seed, phrasing=config.phrasing))


def _long_caption(seed: int, config: TaskConfig) -> VisualSample:
    scene = sample_scene(seed, config.scenes)
    return _captioned(seed, config, long_caption(scene, seed, phrasing=config.phrasing, filler=config.filler))


def _clip_caption(seed: int, config: TaskConfig) -> VisualSample:
    clip = sample_clip(seed, config.clips)
    caption = clip_caption(clip, seed, phrasing=config.phrasing)
    return VisualSample(list(clip.frames), DESCRIBE_CLIP, caption, caption, {"seed": seed, "direction": clip.direction})


def _text(seed: int, config: TaskConfig) -> VisualSample:
    ids = document(seed, config.text_length, config.text)[1:-1]  # the processor puts `<bos>` and `<eos>` around it
    return VisualSample([], "", "", decode(ids), {"seed": seed})


def _irrelevant(seed: int, config: TaskConfig) -> VisualSample:
    """A question that its own words answer, under a picture that has nothing to do with it."""
    question, answer = inline_question(generator(seed, "irrelevant"), config.facts)
    image = render(sample_scene(seed, config.scenes), config.scene_size)
    return VisualSample([image], question, answer, meta={"seed": seed})


TASKS: dict[str, Callable[[int, TaskConfig], VisualSample]] = {
    "boards": lambda seed, config: board_sample(seed, config.boards),
    "scenes": _scene,
    "detail": lambda seed, config: detail_sample(seed, config.detail, phrasing=config.phrasing),
    "captions": _caption,
    "long_captions": _long_caption,
    "clips": lambda seed, config: clip_sample(seed, config.clips),
    "clip_captions": _clip_caption,
    "tiles": lambda seed, config: tile_sample(seed, config.tiles),
    "irrelevant": _irrelevant,
    "text": _text,
}
"""Name -> `f(seed, config) -> sample`."""


def task_of(seed: int, weights: dict[str, float]) -> str:
    """The task that a seed belongs to in a mixture; a seed and the odd one after it belong to the same.

    Raises:
        ValueError: unknown task, negative weight, or no positive one.
    """
    unknown = sorted(set(weights) - set(TASKS))
    if unknown:
        raise ValueError(f"unknown task {', '.join(unknown)}; allowed: {', '.join(TASKS)}")
    if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
        raise ValueError(f"weights of tasks must be at least 0 and not all 0, got {weights}")
    names = list(weights)
    shares = np.cumsum([weights[name] for name in names]) / sum(weights.values())
    draw = generator(seed - seed % 2, "task").random()  # pairs stay together: `detail` asks twice about a picture
    return names[int(np.searchsorted(shares, draw, side="right"))]


def make_sample(seed: int, weights: dict[str, float], config: TaskConfig | None = None) -> VisualSample:
    """The sample of one seed in a mixture of tasks; `meta["task"]` names its task.

    Example:
        >>> make_sample(3, {"boards": 1.0}).meta["task"]
        'boards'
    """
    name = task_of(seed, weights)
    sample = TASKS[name](seed, config or TaskConfig())
    sample.meta["task"] = name
    return sample
