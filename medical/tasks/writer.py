"""The writer: fused token states of a question become a prefix in front of a language model, which writes the answer.

VELVET-Med's text and vision layers stay frozen; the writer holds its own copy of what is trained: visual adapter,
fusion layers, the projection to the language model, its low-rank adapters, and a yes/no head.
Dims: B dialogues, N question tokens, D text width, C vision channels, V visual tokens, T answer tokens, P prefix,
W width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.backbone import LanguageBackbone
from mm.checkpoint import Pretrained, load_state
from mm.medical.tasks.identity import fingerprint
from mm.medical.velvet.config import TextConfig
from mm.medical.velvet.heads import VisualAdapter
from mm.medical.velvet.loss import IGNORE
from mm.medical.velvet.text import TriBertLayer
from mm.vlm.language import build_language, language_config, read_tokenizer

if TYPE_CHECKING:
    from mm.medical.velvet.model import VelvetModel


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How answers are searched; the defaults are published."""

    num_beams: int = 8
    """Beams; 1 is greedy."""
    no_repeat_ngram_size: int = 2
    """Word pieces in a row that must not come twice; 0 allows everything."""

    def __post_init__(self) -> None:
        if self.num_beams < 1 or self.no_repeat_ngram_size < 0:
            raise ValueError(
                "num_beams must be at least 1 and no_repeat_ngram_size not negative, got "
                f"{self.num_beams} and {self.no_repeat_ngram_size}"
            )


@dataclass(frozen=True, kw_only=True)
class WriterConfig:
    """Sizes of a writer; vision and text must be those of the VELVET-Med model that it belongs to."""

    vision_width: int = 768
    """Channels of the last vision output (C)."""
    text: TextConfig = field(default_factory=TextConfig)
    """Text encoder, of which the fusion layers are copied."""
    language: dict[str, Any] = field(default_factory=lambda: {"model_type": "llama"})
    """Hugging Face config of the language model, `model_type` included."""
    language_path: str = ""
    """Folder or hub id of a published language model. Its own weights are then read from there and not saved with the
    writer; empty: they are part of the writer."""
    visual_prefix: bool = False
    """Put the visual tokens in front of the question states. Published: never."""
    lora_rank: int = 0
    """Rank of low-rank adapters on `lora_targets` (published: 8); 0 trains the language model itself."""
    lora_alpha: float = 32.0
    """Scale of the adapters, over the rank."""
    lora_dropout: float = 0.05
    """Dropout on their input."""
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    """Layers that get adapters. The published list also names "dense", which Llama has none of."""
    base_weights: str = ""
    """Fingerprint of the model it was trained on; with other weights its answers mean nothing."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """Search of answers."""

    def __post_init__(self) -> None:
        if self.text.fusion_layers < 1:
            raise ValueError("a writer needs fusion layers: text.fusion_layers must be at least 1")
        if "model_type" not in self.language:
            raise ValueError("language must be a Hugging Face config with its model_type, e.g. {'model_type': 'llama'}")


@dataclass(frozen=True)
class WriterOutput:
    """What the writer computes for a batch."""

    logits: Tensor
    """Next token after each place of `input_ids`, (B, T, vocabulary)."""
    yes_no: Tensor
    """Logit of "yes" from the fused [CLS] state, (B,)."""


class YesNoHead(nn.Module):
    """Fused [CLS] state -> logit of "yes": Linear, GELU, LayerNorm, Linear, as published."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, state: Tensor) -> Tensor:
        """(B, D) -> (B,)."""
        return self.layers(state)[:, 0]  # type: ignore[no-any-return]


class Writer(Pretrained, nn.Module):
    """Answers and reports from fused states.

    Args:
        config: Sizes.
        backbone: Used instead of a random language model (or instead of reading `language_path`).
        tokenizer: Of the language model; travels with the weights.

    Source: VELVET-Med (arXiv:2508.12108), question answering and report generation of its published code: only states
        of question tokens are the prefix, a begin token follows it. Deviation: the question is split into sentences
        and not, as there, into characters.
    """

    config_class = WriterConfig
    config: WriterConfig

    def __init__(
        self, config: WriterConfig, *, backbone: LanguageBackbone | None = None, tokenizer: Any = None
    ) -> None:
        super().__init__()
        self.config = config
        width = config.text.width
        self.adapter = VisualAdapter(config.vision_width, width)
        self.fusion = nn.ModuleList(TriBertLayer(config.text, fusion=True) for _ in range(config.text.fusion_layers))
        if backbone is None:
            path = config.language_path
            backbone = LanguageBackbone.from_pretrained(path) if path else build_language(config.language)
        self.projector = nn.Linear(width, backbone.width)
        self.yes_no = YesNoHead(width)
        if config.lora_rank:
            backbone.lora(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets)
        self.backbone = backbone
        if tokenizer is not None:
            self.backbone.tokenizer = tokenizer

    @classmethod
    def around(cls, model: VelvetModel, backbone: LanguageBackbone, tokenizer: Any = None, **options: Any) -> Writer:
        """A writer for a model, starting from its adapter and fusion layers.

        Args:
            model: With fusion layers.
            backbone: Language model.
            tokenizer: Its tokenizer; default: the one it holds.
            options: Further fields of `WriterConfig`.

        Raises:
            ValueError: the model has no fusion layers.
        """
        config = WriterConfig(
            vision_width=model.config.vision.widths[4],
            text=model.config.text,
            language=language_config(backbone),
            base_weights=fingerprint(model),
            **options,
        )
        writer = cls(config, backbone=backbone, tokenizer=tokenizer or backbone.tokenizer)
        if model.adapter is not None:
            load_state(writer.adapter, model.adapter.state_dict(), source="the model's adapter")
        layers = model.text.layers[model.config.text.layers :]
        load_state(writer.fusion, layers.state_dict(), source="the model's fusion layers")
        return writer

    def fits(self, model: VelvetModel) -> None:
        """Check that a model is the one this writer was trained on.

        Raises:
            ValueError: other sizes or other weights.
        """
        if (model.config.vision.widths[4], model.config.text) != (self.config.vision_width, self.config.text):
            raise ValueError("this writer was made for a model of other sizes: train one for this model")
        if self.config.base_weights and (own := fingerprint(model)) != self.config.base_weights:
            raise ValueError(
                f"this writer was trained on weights {self.config.base_weights}, the model has {own}: train it again"
            )

    # --- running -----------------------------------------------------------------------------------------------------

    def fused(self, features: Tensor, states: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Question states after cross-attention to the scan, (B, N, D), and the visual tokens, (B, V, D).

        Args:
            features: Last vision output, (B, C, h, w, d).
            states: Output of the last text layer, (B, N, D).
            visible: Mask of the text layers, (B, N, N) bool.
        """
        kind = self.projector.weight.dtype
        memory = self.adapter(features.to(kind))
        states = states.to(kind)
        for layer in self.fusion:
            states = layer(states, visible, memory)
        return states, memory

    def prefix(self, fused: Tensor, memory: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings in front of the answer, real ones to the right: (B, P, W) and True where real, (B, P)."""
        if self.config.visual_prefix:
            fused = torch.cat([memory, fused], dim=1)
            keep = torch.cat([keep.new_ones(memory.shape[:2]), keep], dim=1)
        order = keep.int().argsort(dim=1, stable=True)  # padding first, real tokens in their order
        moved = fused.take_along_dim(order[..., None], 1)
        return self.projector(moved), keep.take_along_dim(order, 1)

    def forward(
        self,
        features: Tensor,
        states: Tensor,
        visible: Tensor,
        keep: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
    ) -> WriterOutput:
        """Logits behind every token of the answer.

        Args:
            features: Last vision output of each dialogue's scan, (B, C, h, w, d).
            states, visible: Question after the text layers and its mask, (B, N, D) and (B, N, N).
            keep: True at real question tokens, (B, N) bool.
            input_ids: Begin token and answer, (B, T) int.
            attention_mask: 1 or True at real tokens, padding on the right, (B, T).
        """
        fused, memory = self.fused(features, states, visible)
        prefix, real = self.prefix(fused, memory, keep.bool())
        answer = self.backbone.embed(input_ids)
        inputs = torch.cat([prefix.to(answer.dtype), answer], dim=1)
        hidden = self.backbone.hidden_states(inputs, attention=torch.cat([real, attention_mask.bool()], dim=1))
        head: Any = self.backbone.head
        logits = head(self.backbone.final_norm(hidden[:, prefix.shape[1] :]))
        return WriterOutput(logits, self.yes_no(fused[:, 0]))

    @torch.inference_mode()
    def write(
        self, features: Tensor, states: Tensor, visible: Tensor, keep: Tensor, *, max_new_tokens: int, **options: Any
    ) -> list[str]:
        """Answers as text.

        Args:
            features, states, visible, keep: As `forward`.
            max_new_tokens: Longest answer.
            options: Of Hugging Face generation, over those of `config.generation`.
        """
        fused, memory = self.fused(features, states, visible)
        prefix, real = self.prefix(fused, memory, keep.bool())
        begin = torch.full((len(prefix), 1), self.begin_id, dtype=torch.long, device=prefix.device)
        start = self.backbone.embed(begin)
        search = {
            "num_beams": self.config.generation.num_beams,
            "no_repeat_ngram_size": self.config.generation.no_repeat_ngram_size,
            "early_stopping": self.config.generation.num_beams > 1,
            "do_sample": False,
            "pad_token_id": self.tokenizer.pad_token_id,
            "eos_token_id": self.end_id,
        }
        found = self.backbone.generate(
            inputs_embeds=torch.cat([prefix.to(start.dtype), start], dim=1),
            attention_mask=torch.cat([real, torch.ones_like(begin, dtype=torch.bool)], dim=1).long(),
            max_new_tokens=max_new_tokens,
            **(search | options),
        )
        texts: list[str] = self.tokenizer.batch_decode(found, skip_special_tokens=True)
        return [text.strip() for text in texts]

    # --- text --------------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the language model.

        Raises:
            ValueError: it was built without one.
        """
        if self.backbone.tokenizer is None:
            raise ValueError("this writer has no tokenizer: build it with Writer(config, tokenizer=...)")
        return self.backbone.tokenizer

    @property
    def begin_id(self) -> int:
        """Token in front of an answer; the end token where the tokenizer has no begin token."""
        found = self.tokenizer.bos_token_id
        return int(self.end_id if found is None else found)

    @property
    def end_id(self) -> int:
        """Token behind an answer."""
        return int(self.tokenizer.eos_token_id)

    def answer_tokens(self, answers: list[str], longest: int = 750) -> dict[str, Tensor]:
        """Answers as `input_ids` (begin, tokens), `attention_mask`, and `labels` (tokens, end), (B, T) each.

        Exactly one end token is a target; padding is not, even where both have one id.

        Args:
            answers: Texts.
            longest: Tokens of an answer at most; published: 250 for questions, 750 for reports.
        """
        rows = [self.tokenizer(text, add_special_tokens=False).input_ids[: longest - 1] for text in answers]
        length = max(len(row) for row in rows) + 1
        ids = torch.full((len(rows), length), self.tokenizer.pad_token_id or 0, dtype=torch.long)
        labels, mask = torch.full_like(ids, IGNORE), torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens) + 1] = torch.tensor([self.begin_id, *tokens])
            labels[row, : len(tokens) + 1] = torch.tensor([*tokens, self.end_id])
            mask[row, : len(tokens) + 1] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    # --- files -------------------------------------------------------------------------------------------------------

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Everything; without the language model's own weights if they come from `language_path`."""
        state = self.state_dict()
        if self.config.language_path:
            state = {key: value for key, value in state.items() if not _borrowed(key)}
        return state

    def load_checkpoint_state(self, tensors: Mapping[str, Tensor], *, source: str) -> None:
        borrowed = [key for key in self.state_dict() if _borrowed(key)] if self.config.language_path else []
        load_state(self, tensors, source=source, new=borrowed)

    def save_extras(self, folder: Path) -> None:
        if self.backbone.tokenizer is not None:
            self.backbone.tokenizer.save_pretrained(folder)

    @classmethod
    def from_saved(cls, config: WriterConfig, folder: Path) -> Writer:  # type: ignore[override]
        return cls(config, tokenizer=read_tokenizer(folder))


def _borrowed(key: str) -> bool:
    """Weights of the language model itself, without what was put into it."""
    return key.startswith("backbone.") and ".lora_" not in key


def answer_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy at the tokens of the answers, (B, T, vocabulary) and (B, T); -100 is left out."""
    count = (labels != IGNORE).sum().clamp(min=1)
    flat = logits.flatten(0, 1).float()
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORE, reduction="sum") / count


def yes_no_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Binary cross-entropy where the answer is yes (1) or no (0); -100 is left out, (B,) and (B,)."""
    asked = answers != IGNORE
    terms = F.binary_cross_entropy_with_logits(logits.float(), answers.clamp(min=0).float(), reduction="none")
    return (terms * asked).sum() / asked.sum().clamp(min=1)
