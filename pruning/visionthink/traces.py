"""Written conversations that show a model the protocol before it learns when to use it.

Half of them answer at once, half ask first, for easy and hard questions alike, so that reinforcement learning starts
from a model that does both.
Dims: B conversations, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor, nn

from mm.pruning.visionthink.grpo import token_log_probs
from mm.pruning.visionthink.packing import PackedTrajectories, SpecialTokens, Trajectory, Turn, pack_trajectories
from mm.pruning.visionthink.protocol import CALL_TEXT, END, ToolProtocol
from mm.pruning.visionthink.resolution import ResolutionPolicy
from mm.pruning.visionthink.tool_call import CLOSE, OPEN

ASKING = f"<think>look</think>{OPEN}{CALL_TEXT}{CLOSE}{END}"
ANSWERING = "<think>look</think><answer>{answer}</answer>" + END


def written_trace(
    question: str,
    answer: str,
    grids: Sequence[tuple[int, int, int]],
    *,
    asks: bool,
    tokenizer: Any,
    protocol: ToolProtocol,
) -> Trajectory:
    """A conversation with the right answer, directly or after a call.

    Args:
        question, answer: Of the sample.
        grids: Patches of the first look and of the full picture, (frames, rows, columns).
        asks: Whether the tool is called.
        tokenizer, protocol: Of the model.
    """

    def written(text: str) -> Turn:
        return Turn(list(tokenizer(text, add_special_tokens=False).input_ids), generated=True)

    turns = [written(ANSWERING.replace("{answer}", answer))]
    if asks:
        observation = Turn(
            protocol.observation_ids(protocol.image_turn(), tokenizer), generated=False, grids=[grids[1]]
        )
        turns = [written(ASKING), observation, *turns]
    return Trajectory(protocol.prompt_ids(question, tokenizer), [grids[0]], turns)


def packed_batch(
    trajectories: Sequence[Trajectory],
    images: Sequence[Sequence[Image.Image]],
    processor: Any,
    tokens: SpecialTokens,
) -> dict[str, Tensor]:
    """Conversations and the pictures shown in each -> the inputs of one pass.

    Args:
        trajectories: B conversations.
        images: For each the pictures in order, already resized.
        processor: With an `image_processor`.
        tokens: Special ids.

    Returns:
        input_ids, attention_mask, loss_mask (B, N), position_ids (3, B, N), pixel_values and image_grid_thw.
    """
    lengths = [_lengths(trajectory, tokens) for trajectory in trajectories]
    packed: PackedTrajectories = pack_trajectories(
        trajectories,
        prompt_length=max(p for p, _ in lengths),
        response_length=max(r for _, r in lengths),
        tokens=tokens,
    )
    shown = [image for group, kept in zip(images, packed.grids, strict=True) for image in group[: len(kept)]]
    found = processor.image_processor(images=shown, return_tensors="pt")
    return {
        "input_ids": packed.input_ids,
        "attention_mask": packed.attention_mask,
        "loss_mask": packed.loss_mask,
        "position_ids": packed.position_ids,
        "pixel_values": found["pixel_values"],
        "image_grid_thw": found["image_grid_thw"],
    }


def log_probs(vlm: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and entropies of all tokens but the first, and which of them are trained; each (B, N - 1)."""
    logits = vlm(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"].long(),
        position_ids=batch["position_ids"],
        pixel_values=batch["pixel_values"],
        image_grid_thw=batch["image_grid_thw"],
        use_cache=False,
    ).logits
    log_prob, entropy = token_log_probs(logits, batch["input_ids"])
    return log_prob, entropy, batch["loss_mask"][:, 1:]


def trace_batch(
    samples: Sequence[Any],
    asks: Sequence[bool],
    processor: Any,
    tokens: SpecialTokens,
    protocol: ToolProtocol,
    policy: ResolutionPolicy,
) -> dict[str, Tensor]:
    """Samples with `image`, `question` and `answer` -> one batch of written conversations, see `packed_batch`."""
    pairs = [policy.pair(sample.image) for sample in samples]
    every = processor.image_processor(images=[image for pair in pairs for image in pair], return_tensors="pt")
    grids = iter(tuple(grid) for grid in every["image_grid_thw"].tolist())
    trajectories, images = [], []
    for sample, asking, pair in zip(samples, asks, pairs, strict=True):
        sizes = [next(grids), next(grids)]
        trajectories.append(
            written_trace(
                sample.question, sample.answer, sizes, asks=asking, tokenizer=processor.tokenizer, protocol=protocol
            )
        )
        images.append(pair if asking else pair[:1])
    return packed_batch(trajectories, images, processor, tokens)


def _lengths(trajectory: Trajectory, tokens: SpecialTokens) -> tuple[int, int]:
    """Tokens of prompt and response with pictures expanded."""

    def length(ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> int:
        return len(ids) + sum(f * r * c // tokens.merge**2 - 1 for f, r, c in grids)

    response = sum(length(turn.ids, turn.grids) for turn in trajectory.turns)
    return length(trajectory.prompt, trajectory.grids), response
