"""Training of E-ViLM: pre-training on captions with hidden cells and words (stage B), then questions and retrieval.

Source: VIOLETv2 (arXiv:2209.01540) for both stages. Codes come from a frozen semantic tokenizer on the clean frames.
Deviation: fine-tuning can go on with the pre-training objectives beside the new ones (`replay`), so that one model
keeps all its heads; the ancestors fine-tune one model per task without masks.
Dims: B clips, T frames, h w cells, r codes along a side of a cell, X text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mm.checkpoint import create_model, load
from mm.codecs.semantic_vq.convert import load_vqkd
from mm.codecs.semantic_vq.tokenizer import SemanticVQTokenizer
from mm.encoders.evilm.loss import negative_texts, retrieval_loss, same_texts
from mm.encoders.evilm.masking import RATIO, covered_keep, mask_words, video_keep
from mm.encoders.evilm.model import EViLM, VideoFeatures, answer_places
from mm.encoders.evilm.objective import LossWeights, PretrainingBatch, all_pairs, pretraining_step
from mm.training.module import OptimizerConfig, TrainingModule

THING = "thing"
"""Kind of mask that hides what the data says is covered."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """What pre-training hides."""

    kinds: tuple[str, ...] = ("rm", "bm")
    """Each clip draws one of these evenly: rm, bm, tube, and thing (needs `covered` in the batch)."""
    ratio: float = RATIO
    """Share of cells that rm and tube hide."""
    words: float = RATIO
    """Share of words that are masked."""
    negatives: int = 3
    """Wrong texts per clip in matching."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What fine-tuning trains."""

    answers: float = 1.0
    """Weight of the answers at the mask token."""
    retrieval: float = 1.0
    """Weight of matching all clips with all texts of a batch."""
    retrieval_rows: int = 16
    """Clips of a batch that retrieval takes; its cost grows with the square."""
    replay: float = 0.0
    """Weight of the pre-training objectives; 0 leaves them out."""


class EViLMModule(TrainingModule):
    """Train an `EViLM`.

    Batches hold `frames` (B, T, 3, H, W) uint8, `input_ids` (B, X) of captions, and for fine-tuning captions, or
    `question_ids` (B, X) with one mask token and `answer_ids` (B), -100 = no such word, or both. `codes`
    (B, T, r h, r w), if there, stand for those of the tokenizer. `covered` is described at `MovingClips`.

    Args:
        stage: "pretrain" or "finetune".
        evilm: Weights to start from: a shipped name, a folder or a hub id; none takes random ones of `preset`.
        preset: Sizes of a fresh model.
        tokenizer: Weights of the semantic tokenizer, likewise, or a published VQ-KD .pth file.
        words: Text tokenizer of a preset that has none, a folder or a hub id; "" takes the model's own.
        masks: What pre-training hides.
        weights: Weights of the pre-training objectives.
        tasks: What fine-tuning trains.
        seed: Of fresh weights, masks and negatives.
        optimizer: Optimiser and schedule.
    """

    model: EViLM

    def __init__(
        self,
        stage: Literal["pretrain", "finetune"] = "pretrain",
        evilm: str | None = None,
        preset: str = "evilm_tiny",
        tokenizer: str = "semantic_vq_tiny",
        words: str = "",
        masks: MaskConfig | None = None,
        weights: LossWeights | None = None,
        tasks: TaskConfig | None = None,
        seed: int = 0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        if stage not in ("pretrain", "finetune"):
            raise ValueError(f"stage must be 'pretrain' or 'finetune', got {stage!r}")
        model = create_model(preset, seed=seed) if evilm is None else load(evilm)
        codes = load_vqkd(tokenizer)[0] if tokenizer.endswith(".pth") else load(tokenizer)
        if not isinstance(model, EViLM) or not isinstance(codes, SemanticVQTokenizer):
            raise ValueError(
                f"{evilm or preset!r} is a {type(model).__name__} and {tokenizer!r} a {type(codes).__name__}; this "
                "module trains an EViLM on the codes of a SemanticVQTokenizer"
            )
        check_codes(model, codes)
        if words:
            model.tokenizer = read_words(words, model.config.vocab_size)
        if model.tokenizer is None:
            raise ValueError(
                f"{evilm or preset!r} has no text tokenizer; name one with words, such as bert-base-uncased"
            )
        model.config = replace(model.config, codes_from=tokenizer)
        super().__init__(model.train(), optimizer)
        self.stage, self.seed = stage, seed
        self.masks, self.weights, self.tasks = masks or MaskConfig(), weights or LossWeights(), tasks or TaskConfig()
        self.codes_of = codes.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EViLMModule:
        """The tokenizer stays in evaluation mode."""
        super().train(mode)
        self.codes_of.eval()
        return self

    def compute_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Weighted sum of the stage's objectives; logs each of them unweighted."""
        pretraining = self.stage == "pretrain" or self.tasks.replay
        total, logs = torch.zeros((), device=batch["frames"].device), dict[str, Tensor | float]()
        if pretraining:
            step = pretraining_step(self.model, self.prepare(batch), self.weights)
            losses = dict(step.losses)
            total = total + losses.pop("total") * (1.0 if self.stage == "pretrain" else self.tasks.replay)
            logs |= {f"{name}_loss": loss for name, loss in losses.items()} | step.scores
        if self.stage == "finetune":
            losses, scores = finetuning_losses(self.model, batch, self.tasks.retrieval_rows)
            for name, loss in losses.items():
                total = total + getattr(self.tasks, name) * loss
            logs |= {f"{name}_loss": loss for name, loss in losses.items()} | scores
        return total, logs

    def prepare(self, batch: dict[str, Tensor]) -> PretrainingBatch:
        """Draw masks and negatives and tokenise the clean frames; the step number is the seed, so a run repeats."""
        generator = torch.Generator().manual_seed(self._draw())
        frames, ids = batch["frames"], batch["input_ids"]
        tokenizer: Any = self.model.tokenizer
        special = (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
        masked, labels = mask_words(ids, special, tokenizer.mask_token_id, generator, self.masks.words)
        return PretrainingBatch(
            frames=frames.float() / 255,
            keep=self.keep(batch, generator).to(frames.device),
            codes=batch["codes"] if "codes" in batch else self.codes_of.encode(frames),
            input_ids=ids,
            masked_ids=masked,
            labels=labels,
            attention_mask=ids != tokenizer.pad_token_id,
            texts=negative_texts(len(ids), generator, 1 + self.masks.negatives).to(ids.device),
        )

    def keep(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """Visible cells, (B, T, h, w) bool; each clip draws its kind of mask."""
        count, frames, _, height, width = batch["frames"].shape
        cell, kinds = self.model.config.video.cell, self.masks.kinds
        shape = (count, frames, -(-height // cell), -(-width // cell))
        plain = tuple(kind for kind in kinds if kind != THING)
        drawn = video_keep(shape, generator, plain or ("rm",), self.masks.ratio)
        if THING not in kinds:
            return drawn
        if "covered" not in batch:
            raise ValueError("masks.kinds names 'thing', but the batch holds no `covered`; take other kinds of masks")
        hidden = covered_keep(batch["covered"].cpu(), self.model.config.codes_per_cell)
        chosen = torch.rand(count, generator=generator) < kinds.count(THING) / len(kinds)
        return torch.where(chosen[:, None, None, None], hidden, drawn)

    def _draw(self) -> int:
        step = self.global_step if self._trainer is not None and self.training else 0
        rank = self.global_rank if self._trainer is not None else 0
        return hash((self.seed, step, rank)) % 2**63

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The tokenizer is frozen and found by its name; its weights stay out of the checkpoint."""
        state = checkpoint["state_dict"]
        for key in [key for key in state if key.startswith("codes_of.")]:
            del state[key]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the tokenizer's own weights where a strict load looks for them."""
        own = self.state_dict()
        checkpoint["state_dict"] |= {key: own[key] for key in own if key.startswith("codes_of.")}


def read_words(name: str, vocab_size: int) -> Any:
    """A text tokenizer from a folder or a hub id.

    Raises:
        ValueError: more words than the model has.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    if len(tokenizer) > vocab_size:
        raise ValueError(f"words={name!r} knows {len(tokenizer)} words, the model {vocab_size}; set vocab_size")
    return tokenizer


def check_codes(model: EViLM, codes: SemanticVQTokenizer) -> None:
    """Whether the codes of a tokenizer are what the head of a model predicts.

    Raises:
        ValueError: another number of codes, or another number per cell.
    """
    config, patch = model.config, codes.config.patch_size
    if config.codebook_size != codes.config.quantizer.size or config.video.cell != config.codes_per_cell * patch:
        raise ValueError(
            f"the model predicts {config.codebook_size} codes, {config.codes_per_cell} along a cell of "
            f"{config.video.cell} pixels; the tokenizer has {codes.config.quantizer.size} codes for patches of {patch}"
        )


def finetuning_losses(
    model: EViLM, batch: dict[str, Tensor], retrieval_rows: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Answers at the mask token, and retrieval among the first `retrieval_rows` clips, whichever the batch is for.

    Returns:
        Losses `answers` and `retrieval`; shares that are right, `answer_top1` and `retrieval_top1` (texts of clips).

    Raises:
        ValueError: neither questions nor captions.
    """
    if "question_ids" not in batch and "input_ids" not in batch:
        raise ValueError("fine-tuning needs question_ids with answer_ids, or input_ids of captions, in the batch")
    video = model.encode_video(batch["frames"].float() / 255)
    losses: dict[str, Tensor] = {}
    scores: dict[str, Tensor] = {}
    if "question_ids" in batch:
        losses["answers"], scores["answer_top1"] = answer_loss(model, video, batch["question_ids"], batch["answer_ids"])
    if "input_ids" in batch:
        found = all_pairs_loss(model, video, batch["input_ids"][:retrieval_rows])
        losses["retrieval"], scores["retrieval_top1"] = found
    return losses, scores


def answer_loss(model: EViLM, video: VideoFeatures, questions: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy over all words at the mask token; answers that are no single word (-100) count as wrong only."""
    tokenizer: Any = model.tokenizer
    fused = model.fuse(video, model.encode_text(questions, questions != tokenizer.pad_token_id))
    logits = model.word_logits(answer_places(fused.text, questions, tokenizer.mask_token_id)).float()
    known = (answers != -100).sum().clamp(min=1)
    loss = F.cross_entropy(logits, answers, ignore_index=-100, reduction="sum") / known
    return loss, (logits.argmax(-1) == answers).float().mean()


def all_pairs_loss(model: EViLM, video: VideoFeatures, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Every one of the first clips with every caption (M, X); equal captions are no wrong ones."""
    tokenizer: Any = model.tokenizer
    pairs = all_pairs(len(ids), ids.device)
    text = model.encode_text(ids, ids != tokenizer.pad_token_id)
    scores = model.score(video.rows(pairs.mT.flatten()), text.rows(pairs.flatten())).view(len(ids), -1)
    same = same_texts(ids, pairs)
    best = scores.detach().argmax(1)
    return retrieval_loss(scores, same), same.gather(1, best[:, None]).float().mean()
