"""`attn_implementation="mm"`: any Hugging Face model, unchanged numbers, statistics on request.

Outside `collect` the registered function is transformers' own fused attention. Inside, the chosen attention modules
also hand out rows, column sums and entropies. Requests travel on the modules, because some models drop extra keyword
arguments (SigLIP) and some attention modules do not know their layer (CLIP). A mask function is registered as well;
without one transformers would pass no mask even for padded batches.
Dims: B batch, H query heads, N queries, M keys, D channels per head.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mm.kernels.scored_attention import Scores, attention_with_scores

logger = logging.getLogger(__name__)

NAME = "mm"
_REQUEST = "_mm_kernels_request"  # attribute of an attention module while statistics are collected


def register() -> None:
    """Make `attn_implementation="mm"` known to transformers; may be called any number of times."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


@dataclass
class Record:
    """Statistics in the order in which the attention layers ran."""

    calls: list[tuple[str, Scores]] = field(default_factory=list)
    """Module name and its scores; a layer that ran several times (generation) stands there as often."""

    def __len__(self) -> int:
        return len(self.calls)

    def of(self, name: str) -> list[Scores]:
        """All scores of one attention module.

        Raises:
            ValueError: the module was not recorded.
        """
        found = [scores for module, scores in self.calls if module == name]
        if not found:
            known = ", ".join(dict.fromkeys(module for module, _ in self.calls)) or "none"
            raise ValueError(f"no statistics of {name!r}; recorded modules: {known}")
        return found

    def stack(self, part: str) -> Tensor:
        """One statistic ("rows", "columns", "entropy", "lse") of all calls, (calls, B, ...); shapes must agree."""
        return torch.stack([getattr(scores, part) for _, scores in self.calls])


@dataclass
class _Request:
    name: str
    options: dict[str, Any]
    record: Record


@contextmanager
def collect(
    model: nn.Module,
    *,
    rows: str | Tensor | None = None,
    columns: bool | Tensor = False,
    entropy: bool = False,
    head_reduce: str = "mean",
    only: str = "*",
) -> Iterator[Record]:
    """Collect attention statistics of a Hugging Face model inside the block.

    Args:
        model: A model, or a part of one, that runs with `attn_implementation="mm"`.
        rows, columns, entropy, head_reduce: See `mm.kernels.attention_with_scores`. Models turn padding into 4-D masks,
            so "last" means the last position and `columns=True` counts every query; pass `columns=attention_mask` to
            leave padded queries out.
        only: Shell pattern over module names, for instance "*layers.3.*".

    Yields:
        A `Record` that fills while the model runs.

    Raises:
        ValueError: the model does not use this attention, or no module matches `only`.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> register()
        >>> sizes = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=9)
        >>> config = LlamaConfig(**sizes, attn_implementation="mm")
        >>> model = LlamaForCausalLM(config).eval()
        >>> with torch.no_grad(), collect(model, rows="last") as record:
        ...     _ = model(torch.tensor([[1, 2, 3]]))
        >>> record.stack("rows").shape
        torch.Size([2, 1, 3])
    """
    _check_implementation(model)
    record = Record()
    options = {"rows": rows, "columns": columns, "entropy": entropy, "head_reduce": head_reduce}
    chosen = [(name, module) for name, module in model.named_modules() if fnmatch(name, only)]
    if not chosen:
        raise ValueError(f"no module of {type(model).__name__} matches only={only!r}")
    for name, module in chosen:
        module.__dict__[_REQUEST] = _Request(name, options, record)
    try:
        yield record
        if not record.calls:
            logger.warning("no attention layer of %s that matches %r reported statistics", type(model).__name__, only)
    finally:
        for _, module in chosen:
            module.__dict__.pop(_REQUEST, None)


def _check_implementation(model: nn.Module) -> None:
    configs = [module.config for module in model.modules() if hasattr(getattr(module, "config", None), "to_dict")]
    found = {str(getattr(config, "_attn_implementation", None)) for config in configs}
    if configs and NAME not in found:
        raise ValueError(
            f"{type(model).__name__} runs attn_implementation={', '.join(sorted(found))}; "
            f"call mm.kernels.hf.register() and model.set_attn_implementation({NAME!r}) first"
        )


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query (B, H, N, D), key and value (B, G, M, D) -> output (B, N, H, D)."""
    # With this flag the fused function would log a warning, which breaks whole-graph compilation.
    kwargs.pop("output_attentions", None)
    request = module.__dict__.get(_REQUEST)
    if request is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    return _scored(request, module, query, key, value, attention_mask, dropout, scaling, is_causal, kwargs)


def _scored(request, module, query, key, value, mask, dropout, scaling, is_causal, kwargs) -> tuple[Tensor, None]:
    for name in ("softcap", "s_aux", "position_bias", "cache"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{request.name}: attention statistics do not know the option {name!r} of this model")
    # No mask means causal when there is more than one query, unless the module or the caller says otherwise.
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and mask is None and query.shape[2] > 1
    if mask is not None:
        mask = mask[..., : key.shape[2]]
    options = {**request.options, "mask": mask, "is_causal": causal, "scale": scaling}
    if dropout > 0:  # statistics are of the undropped weights
        with torch.no_grad():
            _, scores = attention_with_scores(query, key, value, **options)
        out, _ = sdpa_attention_forward(
            module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    else:
        out, scores = attention_with_scores(query, key, value, **options)
        out = out.transpose(1, 2).contiguous()
    request.record.calls.append((request.name, scores))
    return out, None
