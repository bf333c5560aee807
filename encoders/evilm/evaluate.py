"""What a trained E-ViLM scores on clips that training never shows, with the controls that a fake would not pass.

All clips show the 64 held-out combinations of colour, shape and direction. Dims: B clips, F frames, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mm.checkpoint import load
from mm.codecs.semantic_vq.tokenizer import SemanticVQTokenizer
from mm.encoders.evilm.data import held_out_clips
from mm.encoders.evilm.masking import covered_keep
from mm.encoders.evilm.model import EViLM
from mm.encoders.evilm.scenes import MovingClip

CHUNK = 64
"""Clips per pass."""


def frames_of(clips: Sequence[MovingClip]) -> Tensor:
    """(B, F, 3, S, S) uint8."""
    return rearrange(torch.from_numpy(np.stack([clip.frames for clip in clips])), "b f h w c -> b f c h w")


def one_frame(frames: Tensor, seed: int) -> Tensor:
    """One frame of each clip, drawn at random, (B, 1, 3, S, S): the first one would tell where it comes from."""
    drawn = torch.randint(frames.shape[1], (len(frames),), generator=torch.Generator().manual_seed(seed))
    return frames[torch.arange(len(frames)), drawn][:, None]


def shuffled_frames(frames: Tensor, seed: int) -> Tensor:
    """Each clip's frames in a random order of their own."""
    order = torch.rand(frames.shape[:2], generator=torch.Generator().manual_seed(seed)).argsort(1)
    return frames[torch.arange(len(frames))[:, None], order]


@torch.no_grad()
def question_accuracy(
    model: EViLM, clips: Sequence[MovingClip], kinds: Sequence[str], frames: Tensor | None = None
) -> dict[str, float]:
    """Share of right answers per kind of question (`MovingClip.ask`); every clip is encoded once.

    Args:
        model: With a list of answers.
        clips: What is asked about.
        kinds: Kinds of questions.
        frames: Shown instead of the clips' own, (B, F, 3, S, S) uint8.
    """
    frames = frames_of(clips) if frames is None else frames
    right = dict.fromkeys(kinds, 0)
    for first in range(0, len(clips), CHUNK):
        video = model.encode_video(_values(model, frames[first : first + CHUNK]))
        for kind in kinds:
            asked = [clip.ask(kind) for clip in clips[first : first + CHUNK]]
            best = model.answer_logits(video, [question for question, _ in asked]).argmax(1).tolist()
            right[kind] += sum(model.config.answers[i] == answer for i, (_, answer) in zip(best, asked, strict=True))
    return {kind: count / len(clips) for kind, count in right.items()}


@torch.no_grad()
def retrieval(model: EViLM, clips: Sequence[MovingClip]) -> dict[str, float]:
    """R@1 among the clips, each with its own caption: by matching logits both ways, and by unimodal cosine."""
    video = model.encode_video(_values(model, frames_of(clips)))
    text = model.encode_text(**model.tokenize([clip.caption for clip in clips]))
    scores = model.score_all(video, text, chunk_size=1024)
    found = {"text_to_video_r1": _hits(scores.mT), "video_to_text_r1": _hits(scores)}
    if video.embedding is not None and text.embedding is not None:
        found["text_to_video_r1_unimodal"] = _hits(text.embedding @ video.embedding.mT)
    return found


@torch.no_grad()
def masked_codes(
    model: EViLM, tokenizer: SemanticVQTokenizer, clips: Sequence[MovingClip], *, shift: int = 29
) -> dict[str, float]:
    """Every cell that the thing touches is hidden: how many codes of its patches are named right.

    Args:
        model: Names codes.
        tokenizer: Says which is right, from the clean frames.
        clips: Any.
        shift: How far captions are moved for the wrong ones; no held-out caption is equal to its neighbour.

    Returns:
        Shares with the clip's own caption, with another clip's, and for the single code that is most frequent there.
    """
    covered = torch.from_numpy(np.stack([clip.covered(tokenizer.config.patch_size) for clip in clips]))
    frames, captions = frames_of(clips), [clip.caption for clip in clips]
    codes = tokenizer.encode(frames.to(tokenizer.target_mean.device)).cpu()
    wrong = captions[shift:] + captions[:shift]
    right = {"own": 0, "other": 0}
    for name, texts in (("own", captions), ("other", wrong)):
        for first in range(0, len(clips), CHUNK):
            part = slice(first, first + CHUNK)
            keep = covered_keep(covered[part], model.config.codes_per_cell).to(model.text.words.weight.device)
            out = model(_values(model, frames[part]), **model.tokenize(texts[part]), mask=keep)
            right[name] += int((out.codes.argmax(-1).cpu() == codes[part])[covered[part]].sum())
    total = int(covered.sum())
    most = int(torch.bincount(codes[covered]).max())
    return {
        "masked_codes": right["own"] / total,
        "masked_codes_other_caption": right["other"] / total,
        "masked_codes_most_frequent": most / total,
    }


def evaluate(
    model: EViLM, *, seed: int, rounds: int = 4, tokenizer: SemanticVQTokenizer | None = None
) -> dict[str, float]:
    """All scores.

    Args:
        model: With weights.
        seed: Which held-out clips.
        rounds: Clips per combination; retrieval takes the first of each.
        tokenizer: Of the codes; default: the one that `config.codes_from` names.
    """
    codes: Any = tokenizer or load(model.config.codes_from)
    clips = [clip for number in range(rounds) for clip in held_out_clips(rounds * seed + number)]
    frames = frames_of(clips)
    found = question_accuracy(model, clips, ("choice", "direction", "shape", "colour", "size"), frames)
    scores = {"left_or_right": found.pop("choice")}
    for name, shown in (("one_frame", one_frame(frames, seed)), ("shuffled", shuffled_frames(frames, seed))):
        scores[f"left_or_right_{name}"] = question_accuracy(model, clips, ("choice",), shown)["choice"]
    return scores | found | retrieval(model, clips[: len(clips) // rounds]) | masked_codes(model, codes, clips)


def _values(model: EViLM, frames: Tensor) -> Tensor:
    return frames.to(model.text.words.weight.device).float() / 255


def _hits(scores: Tensor) -> float:
    """Share of the rows whose largest score stands on the diagonal."""
    return (scores.argmax(1) == torch.arange(len(scores), device=scores.device)).float().mean().item()
