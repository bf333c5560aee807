"""From the turns of a conversation to the tensors of a training step.

A trajectory is its prompt and a response of alternating turns: generated ones carry loss, appended observations don't.
Turns are joined as token ids, never decoded and tokenised again. A response is cut or padded to one length; attention
reaches to its last end marker.
Dims: B trajectories, L response tokens, N = prompt and response tokens.
Source: the published rollout code of VisionThink (Yang et al. 2025, arXiv:2507.13348), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from mm.pruning.visionthink.mrope import mrope_positions

Grid = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids that packing must know; the defaults are those of Qwen2.5-VL."""

    end: int = 151645
    """Ends a turn."""
    pad: int = 151643
    """Fills rows up."""
    image: int = 151655
    """What a picture is made of."""
    last_allowed: int = 151664
    """Larger ids are dropped from generated turns: the embedding table has rows that no token uses."""
    merge: int = 2
    """Patches per side of one visual token."""


@dataclass(frozen=True)
class Turn:
    """One turn of the response."""

    ids: Sequence[int]
    """Token ids; one image token per picture, which packing expands."""
    generated: bool
    """True for turns of the model, False for observations."""
    grids: Sequence[Grid] = ()
    """Pictures of the turn in order, patches as (frames, rows, columns)."""


@dataclass(frozen=True)
class Trajectory:
    """A prompt and what followed."""

    prompt: Sequence[int]
    """Token ids; one image token per picture."""
    grids: Sequence[Grid]
    """Pictures of the prompt."""
    turns: Sequence[Turn] = field(default_factory=tuple)


@dataclass(frozen=True)
class PackedTrajectories:
    """Trajectories of equal length: prompts padded on the left, responses on the right."""

    input_ids: Tensor
    """(B, N)."""
    attention_mask: Tensor
    """True up to the last end marker of the response, (B, N)."""
    multi_turn_mask: Tensor
    """True at generated tokens, whether or not attention reaches them, (B, N)."""
    position_ids: Tensor
    """Time, height and width, (3, B, N)."""
    grids: list[list[Grid]]
    """Pictures of every trajectory whose tokens survived the cut."""
    segments: list[list[list[int]]]
    """Generated turns without their last token, as the reward reads them."""
    prompt_length: int

    @property
    def loss_mask(self) -> Tensor:
        """True at tokens that are trained, (B, N)."""
        return self.attention_mask & self.multi_turn_mask


def finish_turn(ids: Sequence[int], tokens: SpecialTokens) -> list[int]:
    """A generated turn as it enters the conversation: unused ids dropped, and an end marker in any case.

    Where the model did not end its turn, its last token is replaced by the marker, as published.
    """
    kept = [i for i in ids if i <= tokens.last_allowed]
    if tokens.end not in kept:
        kept[-1:] = [tokens.end]
    return kept


def expand_images(ids: Sequence[int], grids: Sequence[Grid], tokens: SpecialTokens) -> list[int]:
    """One image token per picture -> as many as the picture has.

    Raises:
        ValueError: another number of image tokens than pictures.
    """
    if list(ids).count(tokens.image) != len(grids):
        raise ValueError(f"{list(ids).count(tokens.image)} image tokens for {len(grids)} pictures")
    left = iter(grids)
    return [i for token in ids for i in ([token] * _count(next(left), tokens) if token == tokens.image else [token])]


def pack_trajectories(
    trajectories: Sequence[Trajectory],
    *,
    prompt_length: int,
    response_length: int,
    tokens: SpecialTokens | None = None,
) -> PackedTrajectories:
    """Pad, cut and mask trajectories.

    Args:
        trajectories: Conversations, generated turns already passed through `finish_turn`.
        prompt_length: Tokens that every prompt is padded to.
        response_length: Tokens that every response is padded or cut to.
        tokens: Special ids, Qwen2.5-VL's by default.

    Returns:
        Tensors of N = prompt_length + response_length tokens. A response cut before its first end marker is hidden from
        attention as a whole, so that no loss falls on it.

    Raises:
        ValueError: a prompt that is too long, or pictures that do not fit their tokens; the trajectory is named.
    """
    tokens = tokens or SpecialTokens()
    rows = []
    for index, trajectory in enumerate(trajectories):
        try:
            rows.append(_packed(trajectory, prompt_length, response_length, tokens))
        except ValueError as error:
            raise ValueError(f"trajectory {index}: {error}") from error
    ids, attention, generated = (torch.tensor([row[i] for row in rows]) for i in range(3))
    grids = [row[3] for row in rows]
    positions = mrope_positions(
        ids, grids, image_token_id=tokens.image, attention_mask=attention.bool(), merge=tokens.merge
    )
    segments = [_segments(row[0][prompt_length:], row[2][prompt_length:]) for row in rows]
    return PackedTrajectories(ids, attention.bool(), generated.bool(), positions, grids, segments, prompt_length)


def _packed(
    trajectory: Trajectory, prompt_length: int, response_length: int, tokens: SpecialTokens
) -> tuple[list[int], list[int], list[int], list[Grid]]:
    """Ids, attention and generated flags of one row, and the pictures that attention reaches."""
    prompt = expand_images(trajectory.prompt, trajectory.grids, tokens)
    if len(prompt) > prompt_length:
        raise ValueError(f"the prompt has {len(prompt)} tokens, more than prompt_length={prompt_length}")
    response: list[int] = []
    generated: list[int] = []
    for turn in trajectory.turns:
        ids = expand_images(turn.ids, turn.grids, tokens)
        response += ids
        generated += [int(turn.generated)] * len(ids)
    response, generated = response[:response_length], generated[:response_length]
    reached = max((i + 1 for i, token in enumerate(response) if token == tokens.end), default=0)
    before, behind = prompt_length - len(prompt), response_length - len(response)
    attention = [0] * before + [1] * (len(prompt) + reached) + [0] * (response_length - reached)
    ids = [tokens.pad] * before + prompt + response + [tokens.pad] * behind
    flags = [0] * prompt_length + generated + [0] * behind
    seen = sum(1 for token, real in zip(ids, attention, strict=True) if real and token == tokens.image)
    return ids, attention, flags, _reached(trajectory, seen, tokens)


def _reached(trajectory: Trajectory, seen: int, tokens: SpecialTokens) -> list[Grid]:
    """The first pictures of a trajectory, as many as make up `seen` image tokens."""
    kept = []
    for grid in [*trajectory.grids, *(grid for turn in trajectory.turns for grid in turn.grids)]:
        seen -= _count(grid, tokens)
        if seen < 0:
            break
        kept.append(grid)
    return kept


def _count(grid: Grid, tokens: SpecialTokens) -> int:
    frames, rows, columns = grid
    return frames * rows * columns // tokens.merge**2


def _segments(response: Sequence[int], generated: Sequence[int]) -> list[list[int]]:
    """Runs of generated tokens without the last one of each."""
    runs = groupby(zip(response, generated, strict=True), key=lambda pair: pair[1])
    return [[token for token, _ in run][:-1] for flag, run in runs if flag]
