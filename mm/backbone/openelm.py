"""OpenELM: a decoder whose blocks grow with depth, as a Hugging Face model.

Transformers does not ship this family, so the published folders could only be opened by running code that comes with
them. This is the same architecture (Mehta et al. 2024, arXiv:2404.14619, section 2) under the published tensor names:
`transformer.{token_embeddings, norm}`, `transformer.layers.N.{attn_norm, ffn_norm, attn.{qkv_proj, out_proj, q_norm,
k_norm}, ffn.{proj_1, proj_2}}`; the head is tied to the embedding. Every block has its own number of heads and its own
feed-forward width ("layer-wise scaling").

Dims: B batch, N new tokens, M cached and new tokens, D width, H query heads, G key/value heads, E channels per head.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto import CONFIG_MAPPING
from transformers.models.llama.modeling_llama import eager_attention_forward


class OpenELMConfig(PreTrainedConfig):
    """Sizes of OpenELM under the field names of the published `config.json`; the defaults are OpenELM-450M.

    Lists hold one entry per block and may be longer than the model is deep (a truncated model uses the first ones).
    """

    model_type = "openelm"
    attribute_map = {  # noqa: RUF012 - the base class declares it without ClassVar
        "hidden_size": "model_dim",
        "num_hidden_layers": "num_transformer_layers",
        "max_position_embeddings": "max_context_length",
    }
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    def __init__(
        self,
        vocab_size: int = 32000,
        model_dim: int = 1536,
        num_transformer_layers: int = 20,
        head_dim: int = 64,
        num_query_heads: list[int] | None = None,
        num_kv_heads: list[int] | None = None,
        ffn_multipliers: list[float] | None = None,
        ffn_dim_divisor: int = 256,
        max_context_length: int = 2048,
        rope_freq_constant: float = 10000,
        initializer_range: float = 0.02,
        share_input_output_layers: bool = True,
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.model_dim = model_dim
        self.num_transformer_layers = num_transformer_layers
        self.head_dim = head_dim
        self.num_query_heads = num_query_heads or [12] * 3 + [16] * 7 + [20] * 6 + [24] * 4
        self.num_kv_heads = num_kv_heads or [3] * 3 + [4] * 7 + [5] * 6 + [6] * 4
        self.ffn_multipliers = ffn_multipliers or [round(0.5 + 3.5 * i / 19, 2) for i in range(20)]
        self.ffn_dim_divisor = ffn_dim_divisor
        self.max_context_length = max_context_length
        self.rope_freq_constant = rope_freq_constant
        self.initializer_range = initializer_range
        self.share_input_output_layers = share_input_output_layers
        self.use_cache = use_cache
        kwargs["tie_word_embeddings"] = share_input_output_layers
        kwargs |= {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        for name in ("num_query_heads", "num_kv_heads", "ffn_multipliers"):
            if len(getattr(self, name)) < self.num_transformer_layers:
                raise ValueError(
                    f"OpenELM: {name} needs an entry per block, got {len(getattr(self, name))} for "
                    f"num_transformer_layers={self.num_transformer_layers}"
                )
        for i, (queries, keys) in enumerate(zip(self.num_query_heads, self.num_kv_heads, strict=False)):
            if queries % keys:
                raise ValueError(f"OpenELM: block {i}: num_kv_heads={keys} must divide num_query_heads={queries}")

    def feed_forward_width(self, i: int) -> int:
        """Channels inside the feed-forward part of block `i`: multiplier * width, to the nearest allowed multiple."""
        exact = self.ffn_multipliers[i] * self.model_dim
        divisor = self.ffn_dim_divisor
        rounded = max(divisor, int(exact + divisor / 2) // divisor * divisor)
        return rounded + divisor if rounded < 0.9 * exact else rounded


class OpenELMRMSNorm(nn.Module):
    """w * x / rms(x), the statistics in float32."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., D), same dtype."""
        wide = hidden.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * normed.to(hidden.dtype)


class OpenELMRotaryEmbedding(nn.Module):
    """Cosine and sine tables; computed on the fly, so nothing has to be restored after loading."""

    def __init__(self, config: OpenELMConfig) -> None:
        super().__init__()
        self.head_dim, self.base = config.head_dim, config.rope_freq_constant

    @torch.no_grad()
    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (B, N) -> cosine and sine, (B, 1, N, E) float32."""
        steps = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=hidden.device)
        angles = position_ids[:, None, :, None].float() * self.base ** (-steps / self.head_dim)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on (B, H, N, E), channel e paired with e + E/2, in float32."""
    low, high = heads.float().chunk(2, dim=-1)
    return (heads.float() * cos + torch.cat([-high, low], dim=-1) * sin).to(heads.dtype)


class OpenELMAttention(nn.Module):
    """Grouped-query attention with one fused projection and RMS-normalised queries and keys."""

    def __init__(self, config: OpenELMConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.heads = (config.num_query_heads[layer_idx], *[config.num_kv_heads[layer_idx]] * 2)
        self.num_key_value_groups = self.heads[0] // self.heads[1]
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        self.qkv_proj = nn.Linear(config.model_dim, sum(self.heads) * config.head_dim, bias=False)
        self.q_norm = OpenELMRMSNorm(config.head_dim)
        self.k_norm = OpenELMRMSNorm(config.head_dim)
        self.out_proj = nn.Linear(self.heads[0] * config.head_dim, config.model_dim, bias=False)

    def forward(
        self,
        hidden: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Any = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        fused = rearrange(self.qkv_proj(hidden), "b n (h e) -> b h n e", e=self.config.head_dim)
        q, k, v = fused.split(self.heads, dim=1)  # (B, H, N, E), (B, G, N, E), (B, G, N, E)
        q, k = (rotate(x, *position_embeddings) for x in (self.q_norm(q), self.k_norm(k)))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)  # (B, G, M, E)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, _ = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.out_proj(rearrange(mixed, "b n h e -> b n (h e)"))  # type: ignore[no-any-return]


class OpenELMFeedForward(nn.Module):
    """SwiGLU: the first half of `proj_1` gates the second."""

    def __init__(self, config: OpenELMConfig, layer_idx: int) -> None:
        super().__init__()
        inner = config.feed_forward_width(layer_idx)
        self.proj_1 = nn.Linear(config.model_dim, 2 * inner, bias=False)
        self.proj_2 = nn.Linear(inner, config.model_dim, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        gate, value = self.proj_1(hidden).chunk(2, dim=-1)
        return self.proj_2(F.silu(gate) * value)  # type: ignore[no-any-return]


class OpenELMDecoderLayer(GradientCheckpointingLayer):
    """Pre-norm block."""

    def __init__(self, config: OpenELMConfig, layer_idx: int) -> None:
        super().__init__()
        self.attn = OpenELMAttention(config, layer_idx)
        self.ffn = OpenELMFeedForward(config, layer_idx)
        self.attn_norm = OpenELMRMSNorm(config.model_dim)
        self.ffn_norm = OpenELMRMSNorm(config.model_dim)

    def forward(self, hidden: Tensor, **kwargs: Any) -> Tensor:
        """(B, N, D) -> (B, N, D); keywords go to the attention."""
        hidden = hidden + self.attn(self.attn_norm(hidden), **kwargs)
        return hidden + self.ffn(self.ffn_norm(hidden))  # type: ignore[no-any-return]


class OpenELMPreTrainedModel(PreTrainedModel):
    """What Hugging Face must know about the family."""

    config_class = OpenELMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["OpenELMDecoderLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_flash_attn = True
    _supports_attention_backend = True


class OpenELMModel(OpenELMPreTrainedModel):
    """The decoder without a head."""

    def __init__(self, config: OpenELMConfig) -> None:
        super().__init__(config)
        self.token_embeddings = nn.Embedding(config.vocab_size, config.model_dim)
        self.layers = nn.ModuleList(OpenELMDecoderLayer(config, i) for i in range(config.num_transformer_layers))
        self.norm = OpenELMRMSNorm(config.model_dim)
        self.rotary_emb = OpenELMRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.token_embeddings = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Ids (B, N) or embeddings (B, N, D) -> last hidden state (normalised), cache, hidden states if asked."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("OpenELM: give exactly one of input_ids and inputs_embeds")
        hidden = self.token_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            start = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(start, start + hidden.shape[1], device=hidden.device)[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        position_embeddings = self.rotary_emb(hidden, position_ids)
        seen = [hidden]
        for layer in self.layers:
            hidden = layer(
                hidden,
                position_embeddings=position_embeddings,
                attention_mask=mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
            seen.append(hidden)
        last = self.norm(hidden)
        keep = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=last,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*seen[:-1], last) if keep else None,
        )


class OpenELMForCausalLM(OpenELMPreTrainedModel, GenerationMixin):
    """The decoder with its head, tied to the embedding unless the config says otherwise."""

    _tied_weights_keys = {"lm_head.weight": "transformer.token_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: OpenELMConfig) -> None:
        super().__init__(config)
        self.transformer = OpenELMModel(config)
        self.lm_head = nn.Linear(config.model_dim, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """As `OpenELMModel`, plus logits (B, N or `logits_to_keep`, vocabulary) and the loss if there are labels."""
        outputs = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state[:, -logits_to_keep:])  # 0 keeps all
        loss = None if labels is None else self.loss_function(logits, labels, vocab_size=self.config.vocab_size)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


def register_openelm() -> None:
    """Let `AutoConfig` and `AutoModel...` open OpenELM folders with these classes; nothing else is changed."""
    if OpenELMConfig.model_type in CONFIG_MAPPING:
        return
    AutoConfig.register(OpenELMConfig.model_type, OpenELMConfig)
    AutoModel.register(OpenELMConfig, OpenELMModel)
    AutoModelForCausalLM.register(OpenELMConfig, OpenELMForCausalLM)
