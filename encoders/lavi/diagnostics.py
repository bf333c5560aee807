"""What the pictures do to each word: strength of the modulation and the patches a word looks at.

    records = inspect(lavi, input_ids, visual)
    word_looks(model, images, prompt)   # both of the following per word, for one question

    token_strength(records)   # (B, N): which words are modulated strongly (the paper: nouns and verbs)
    word_patch_map(records)   # (B, N, S): where each word looks, grounding for free

Dims: B batch, N text tokens, S visual slots, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mm.encoders.lavi.conditioners.attention import AttentionSite
from mm.encoders.lavi.context import VisualContext

if TYPE_CHECKING:
    from mm.encoders.lavi.lavi import Lavi
    from mm.encoders.lavi.model import LaviModel
    from mm.encoders.lavi.stage import Frame
    from mm.encoders.lavi.viln import Modulation


@dataclass(frozen=True, eq=False, kw_only=True)
class SiteRecord:
    """What one modulated norm did in one pass; float32, tokens that are not modulated are zero."""

    layer: int
    """Block."""
    site: str
    """"attn" or "ffn"."""
    scale_norm: Tensor
    """Euclidean norm of dgamma * xhat per token, (B, N)."""
    shift_norm: Tensor
    """Euclidean norm of dbeta per token, (B, N)."""
    plain_norm: Tensor
    """Euclidean norm of the pretrained norm's output per token, (B, N); the yardstick of the two above."""
    outlier: Tensor
    """max |dgamma * xhat| / max |plain output| per token, (B, N): shows whether outlier channels are amplified."""
    attention: Tensor | None
    """Attention conditioner: mean over heads of the weight on each slot, (B, N, S); None for other conditioners."""


class Recorder:
    """Collects a `SiteRecord` per modulated norm while `Lavi.seeing(..., recorder=...)` is in force."""

    def __init__(self, *, maps: bool = True) -> None:
        self.maps = maps
        self.records: list[SiteRecord] = []

    @torch.no_grad()
    def record(
        self,
        modulation: Modulation,
        norm: nn.Module,
        hidden_states: Tensor,
        plain: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        frame: Frame,
    ) -> None:
        """Called by the norm itself with its input, its pretrained output and the two deltas."""
        rows = frame.context.batch_size
        tokens = plain.reshape(rows, -1, plain.shape[-1])
        strength = modulation.stage.delta_scale
        gate = torch.ones_like(tokens[..., 0], dtype=torch.float32)
        if frame.view.gate is not None:
            gate = gate * frame.view.gate
        zeros = torch.zeros_like(tokens, dtype=torch.float32)
        hidden = hidden_states.reshape(tokens.shape)
        scaled = zeros if scale is None else strength * modulation.branch(norm, hidden, scale, None).float()
        shifted = zeros if shift is None else zeros + strength * shift.float()
        attention = None
        if self.maps and isinstance(modulation.conditioner, AttentionSite):
            memory = frame.context.memory[modulation.layer]
            attention = modulation.conditioner.weights(tokens, memory, frame.view.mask).mean(2) * gate.unsqueeze(-1)
        tiny = torch.finfo(torch.float32).tiny
        self.records.append(
            SiteRecord(
                layer=modulation.layer,
                site=modulation.site,
                scale_norm=scaled.norm(dim=-1) * gate,
                shift_norm=shifted.norm(dim=-1) * gate,
                plain_norm=tokens.float().norm(dim=-1),
                outlier=scaled.abs().amax(-1) * gate / tokens.float().abs().amax(-1).clamp_min(tiny),
                attention=attention,
            )
        )


@torch.no_grad()
def inspect(
    lavi: Lavi,
    input_ids: Tensor,
    visual: VisualContext,
    *,
    attention_mask: Tensor | None = None,
    maps: bool = True,
    **kwargs: Any,
) -> list[SiteRecord]:
    """Run the model once and report what each modulated norm did, in the order the norms ran.

    Args:
        lavi: The model.
        input_ids: Text, (B, N).
        visual: The pictures, B rows.
        attention_mask: As in `Lavi.forward`.
        maps: Also keep attention maps (attention conditioner only); they take B * N * S numbers per site.
        kwargs: Passed to the language model.
    """
    recorder = Recorder(maps=maps)
    with lavi.seeing(visual, rows=len(input_ids), recorder=recorder):
        lavi.language_model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    return recorder.records


def token_strength(records: list[SiteRecord]) -> Tensor:
    """Mean over sites of the delta's norm relative to the pretrained output, (B, N)."""
    shares = [(r.scale_norm + r.shift_norm) / r.plain_norm.clamp_min(1e-12) for r in records]
    return torch.stack(shares).mean(0)


def word_patch_map(records: list[SiteRecord]) -> Tensor:
    """Mean attention map over sites, (B, N, S).

    Raises:
        ValueError: the records hold no maps.
    """
    maps = [record.attention for record in records if record.attention is not None]
    if not maps:
        raise ValueError("no attention maps were recorded: only the attention conditioner has them, with maps=True")
    return torch.stack(maps).mean(0)


ANSWER = "(answer)"


@dataclass(frozen=True, eq=False, kw_only=True)
class WordLook:
    """What one word of a question does with the picture."""

    word: str
    """The piece of text, or `ANSWER` for the place that the answer is read from."""
    strength: float
    """`token_strength` of the word."""
    attention: Tensor
    """`word_patch_map` of the word over the grid of patches, (h, w) float32; sums to one where the word looks."""


@torch.inference_mode()
def word_looks(model: LaviModel, image: Any, prompt: str) -> list[WordLook]:
    """Where each word of a question about one picture looks, and at last the place that the answer is read from.

    Args:
        model: A LaVi model with the attention conditioner.
        image: One picture, anything `prepare` takes.
        prompt: The question.

    Raises:
        ValueError: no attention conditioner, or more visual slots than one grid of patches (tiles, frames).
    """
    batch = model.prepare([image], prompt)
    visual = model.encode(batch["pixel_values"], batch["visual_counts"])
    assert visual is not None, "a picture was given"
    records = inspect(model.lavi, batch["input_ids"], visual, attention_mask=batch["attention_mask"])
    maps, (height, width) = word_patch_map(records)[0], model.tower.grid
    if maps.shape[-1] != height * width:
        raise ValueError(f"one grid of {height} x {width} patches expected, found {maps.shape[-1]} visual slots")
    maps, strength = rearrange(maps, "n (h w) -> n h w", h=height), token_strength(records)[0]
    words = model.processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    own = _question(words, model.processor.tokenizer.tokenize(prompt))
    named = [*((words[i], i) for i in own), (ANSWER, len(words) - 1)]
    return [WordLook(word=word, strength=float(strength[i]), attention=maps[i].cpu()) for word, i in named]


def _question(words: list[str], asked: list[str]) -> range:
    """Places of the question inside the whole prompt; all places if it was split otherwise there."""
    for start in range(len(words) - len(asked) + 1):
        if words[start : start + len(asked)] == asked:
            return range(start, start + len(asked))
    return range(len(words))
