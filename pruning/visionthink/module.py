"""Training in two stages: written conversations first, then GRPO on the model's own.

Source: VisionThink (Yang et al. 2025, arXiv:2507.13348), section 3.2.
Deviation: the published training starts from a chat model that calls tools already; a model from scratch needs the
warm start.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

import mm
from mm.pruning.visionthink.advantage import grpo_advantages
from mm.pruning.visionthink.evaluate import scores
from mm.pruning.visionthink.format import FormatVariant, format_reward
from mm.pruning.visionthink.generator import AdaptiveAnswer
from mm.pruning.visionthink.grpo import grpo_loss
from mm.pruning.visionthink.judge import exact
from mm.pruning.visionthink.model import VisionThinkModel, visionthink_tiny
from mm.pruning.visionthink.reward import Rule, group_reward_parts, keeps_group
from mm.pruning.visionthink.traces import log_probs, packed_batch
from mm.pruning.visionthink.weaves import WeaveSample, weave_sample
from mm.training.module import OptimizerConfig, TrainingModule

logger = logging.getLogger(__name__)


class WarmStartModule(TrainingModule):
    """Teach a model from scratch to see, to answer and to call.

    Args:
        sizes: Fields of `TinySizes`.
        answer_weight: How much the word of an answer counts beside the words around it, which are soon known.
        seed: Of the random weights.
        optimizer: Optimiser and schedule.
    """

    model: VisionThinkModel

    def __init__(
        self,
        sizes: dict[str, int] | None = None,
        answer_weight: float = 10.0,
        seed: int = 0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(visionthink_tiny(seed, **(sizes or {})).train(), optimizer)
        self.answer_weight = answer_weight
        self.before_answer: int = self.model.processor.tokenizer.get_vocab()["<answer>"]

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Cross-entropy of the generated tokens; observations and prompts carry none."""
        log_prob, _, mask = log_probs(self.model.vlm, batch)
        answer = batch["input_ids"][:, :-1] == self.before_answer
        weights = mask * torch.where(answer, self.answer_weight, 1.0)
        loss = -(weights * log_prob).sum() / weights.sum().clamp_min(1)
        said = mask & answer
        word = -torch.where(said, log_prob, 0.0).sum() / said.sum().clamp_min(1)
        return loss, {"weight": weights.sum(), "answer_loss": word}


class GrpoModule(TrainingModule):
    """Teach a model when to ask, from rewards alone.

    Every step makes `rollouts` conversations per prompt, scores them as a group and takes one step on all of them.

    Args:
        start: The model to start from, a shipped name or a folder; also the reference of the divergence.
        rollouts: Conversations per prompt.
        temperature: Of the draws.
        rule, theta, tool_penalty, direct_penalty, format_weight: See `group_rewards`.
        format_variant: See `format_reward`.
        judge: `judge(question, truth, answer) -> bool`, see `mm.pruning.visionthink.judge`. One that raises is no
            verdict: the whole group of that rollout is dropped and counted.
        kl_coeff, entropy_coeff, clip_low, clip_high, agg: See `grpo_loss`.
        seed: Of the draws.
        optimizer: Optimiser and schedule.
    """

    model: VisionThinkModel

    def __init__(
        self,
        start: str,
        rollouts: int = 16,
        temperature: float = 1.0,
        rule: Rule = "release",
        theta: float = 0.2,
        tool_penalty: float = 0.1,
        direct_penalty: float = 0.1,
        format_weight: float = 0.5,
        format_variant: FormatVariant = "strict_json",
        judge: Callable[[str, str, str], bool] = exact,
        kl_coeff: float = 0.001,
        entropy_coeff: float = 0.001,
        clip_low: float = 0.2,
        clip_high: float = 0.2,
        agg: Literal["seq_mean", "token_mean"] = "seq_mean",
        seed: int = 0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        if rollouts < 2:
            raise ValueError(f"rollouts must be at least 2, a group of one has no advantage; got {rollouts}")
        model = mm.load(start)
        if not isinstance(model, VisionThinkModel):
            raise ValueError(
                f"start={start}: a {type(model).__name__} does not hold the conversation; train a warm start"
            )
        super().__init__(model.train(), optimizer)
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        self.rollouts, self.temperature, self.seed = rollouts, temperature, seed
        self.reward_options: dict[str, Any] = {
            "rule": rule,
            "theta": theta,
            "tool_penalty": tool_penalty,
            "direct_penalty": direct_penalty,
            "format_weight": format_weight,
        }
        self.format_variant: FormatVariant = format_variant
        self.judge = judge
        self.loss_options: dict[str, Any] = {
            "kl_coeff": kl_coeff,
            "entropy_coeff": entropy_coeff,
            "clip_low": clip_low,
            "clip_high": clip_high,
            "agg": agg,
        }

    def batch_size(self, batch: Any) -> int:
        return len(batch["seeds"])

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The GRPO loss of fresh rollouts; in evaluation the share of wrong greedy answers."""
        samples = [weave_sample(seed) for seed in batch["seeds"].tolist()]
        if not torch.is_grad_enabled():
            generate = self.model.generator(batch_size=64)
            found = scores(samples, generate([s.image for s in samples], [s.question for s in samples]))
            return torch.tensor(1 - found["accuracy"]), dict(found)
        repeated = [sample for sample in samples for _ in range(self.rollouts)]
        generate = self.model.generator(temperature=self.temperature, batch_size=len(repeated))
        draws = self.seed * 1_000_003 + self.global_step
        played = generate([s.image for s in repeated], [s.question for s in repeated], seed=draws)
        totals, kept, logs = self._rewards(repeated, played)
        logs["groups_kept"] = float(kept.float().mean())
        if not kept.any():  # nothing to learn from: a step of nothing, with a graph
            return 0.0 * next(self.model.parameters()).sum(), logs
        groups = torch.arange(len(samples)).repeat_interleave(self.rollouts)
        advantages = grpo_advantages(totals, groups)[kept]
        return self._step(repeated, played, kept, advantages, logs)

    def _rewards(
        self, samples: list[WeaveSample], played: list[AdaptiveAnswer]
    ) -> tuple[Tensor, Tensor, dict[str, Tensor | float]]:
        """Totals (N), which conversations lie in groups that teach something (N), and numbers to log."""
        totals, kept = [], []
        tidy_share, failures = 0.0, 0
        for start in range(0, len(samples), self.rollouts):
            part = slice(start, start + self.rollouts)
            right = [self._verdict(s, a) for s, a in zip(samples[part], played[part], strict=True)]
            failed = None in right
            failures += failed
            checked = [format_reward(a.turns, self.format_variant) for a in played[part]]
            known = [bool(verdict) for verdict in right]
            parts = group_reward_parts(known, [c for _, c in checked], [f for f, _ in checked], **self.reward_options)
            totals.append(parts.total)
            kept += [keeps_group(parts.total, failed=failed)] * self.rollouts
            tidy_share += sum(f for f, _ in checked)
        found = scores(samples, played)
        logs: dict[str, Tensor | float] = {**found, "format": tidy_share / len(samples)}
        logs["judge_failures"] = failures
        logs["reward"] = float(torch.cat(totals).mean())
        return torch.cat(totals), torch.tensor(kept), logs

    def _verdict(self, sample: WeaveSample, played: AdaptiveAnswer) -> bool | None:
        """Whether an answer is right; None where the judge gave no verdict."""
        try:
            return bool(self.judge(sample.question, sample.answer, played.answer))
        except Exception as error:  # a judge is other people's code, often at the other end of a network
            logger.warning("no verdict on %r: %s: %s", played.answer, type(error).__name__, error)
            return None

    def _step(
        self,
        samples: list[WeaveSample],
        played: list[AdaptiveAnswer],
        kept: Tensor,
        advantages: Tensor,
        logs: dict[str, Tensor | float],
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        generate = self.model.generator()
        chosen = [index for index, keep in enumerate(kept.tolist()) if keep]
        images = [self._shown(samples[i].image, played[i]) for i in chosen]
        trajectories = [played[i].trajectory for i in chosen]
        batch = packed_batch(trajectories, images, self.model.processor, generate.tokens)  # type: ignore[arg-type]
        batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        log_prob, entropy, mask = log_probs(self.model.vlm, batch)
        with torch.no_grad():
            reference, _, _ = log_probs(self.reference.vlm, batch)
        loss = grpo_loss(
            log_prob,
            log_prob.detach(),  # one step per rollout: the policy that drew is the policy that learns
            advantages.to(self.device),
            mask,
            ref_log_prob=reference,
            entropy=entropy,
            **self.loss_options,
        )
        return loss.total, {**logs, "kl": loss.kl, "entropy": loss.entropy}

    def _shown(self, image: Image.Image, played: AdaptiveAnswer) -> list[Image.Image]:
        pair = self.model.generator().policy.pair(image)
        return list(pair) if played.called else [pair[0]]
