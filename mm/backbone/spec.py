"""Where the parts of a decoder language model live: one frozen description per family.

Hugging Face decoders agree on the block loop and differ in names (`model.layers` or `transformer.h`), in the kind of
norm, in where positions enter and in what a block is handed. All of that is data, written once in `FAMILIES`; the rest
of the toolkit asks a `BackboneSpec` and never looks at a family name. An unlisted family is refused, not guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

NormKind = Literal["rms", "rms1p", "layer"]
"""rms: w * x/rms(x); rms1p: (1 + w) * x/rms(x), weight stored around zero (Gemma); layer: LayerNorm, with bias."""


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """Names and conventions of one decoder family; paths are dotted and start at the headless base model."""

    family: str
    """`model_type` of the Hugging Face config."""
    norm_kind: NormKind = "rms"
    """How the norms compute (see `NormKind`); LaVi builds its modulation on it."""
    decoder: str = ""
    """Path from the base model to the module that holds the blocks ("" when it is the base model itself)."""
    layers: str = "layers"
    """Block list, inside the decoder."""
    embed: str = "embed_tokens"
    """Token embedding, inside the decoder."""
    position_table: str = ""
    """Learned absolute positions that are added before block 0, inside the decoder ("" for rotary families)."""
    input_projection: str = ""
    """Linear from the embedding width to the model width, inside the decoder; may be None there (small OPT)."""
    embed_dropout: str = ""
    """Dropout on the block input, inside the decoder ("" if none)."""
    final_norm: str = "norm"
    """Norm after the last block, inside the decoder."""
    attention_norm: str = "input_layernorm"
    """Norm in front of attention, inside a block."""
    feed_forward_norm: str = "post_attention_layernorm"
    """Norm in front of the feed-forward part, inside a block."""
    parallel: bool = False
    """Attention and feed-forward read the same residual stream (Phi-2, GPT-NeoX) instead of one after the other."""
    sandwich: bool = False
    """A second norm follows attention and feed-forward before the residual is added (Gemma 2 and 3)."""
    embed_scale: float = 1.0
    """Factor that the embedding module itself applies to its rows (Gemma: sqrt(width), read from the module)."""
    windows: Literal["none", "all", "by_layer"] = "none"
    """Which blocks see a sliding window: never, all when `config.sliding_window` is set, or by `config.layer_types`."""
    rotary: Literal["none", "shared", "by_layer"] = "shared"
    """Rotary tables: none (learned positions), one for all blocks, or one per `config.layer_types` entry."""
    cache_argument: str = "past_key_values"
    """Name under which a block takes the key/value cache."""
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Last names of the linear layers that LoRA adapts: every matrix of a block, never the head, never added parts."""

    @property
    def shared_norm(self) -> bool:
        """True when attention and feed-forward read one norm (Phi-2)."""
        return self.attention_norm == self.feed_forward_norm


FAMILIES: dict[str, BackboneSpec] = {
    spec.family: spec
    for spec in (
        BackboneSpec(family="llama"),  # also Vicuna, SmolLM, SmolLM2
        BackboneSpec(family="mistral", windows="all"),
        BackboneSpec(family="qwen2", windows="by_layer"),
        BackboneSpec(family="qwen3", windows="by_layer"),
        BackboneSpec(family="smollm3", windows="by_layer"),
        BackboneSpec(family="phi3", windows="all", lora_targets=("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
        BackboneSpec(
            family="phi",
            norm_kind="layer",
            feed_forward_norm="input_layernorm",
            final_norm="final_layernorm",
            embed_dropout="embed_dropout",
            parallel=True,
            lora_targets=("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
        ),
        BackboneSpec(family="gemma", norm_kind="rms1p"),
        BackboneSpec(
            family="gemma2",
            norm_kind="rms1p",
            feed_forward_norm="pre_feedforward_layernorm",
            sandwich=True,
            windows="by_layer",
        ),
        BackboneSpec(
            family="gemma3_text",
            norm_kind="rms1p",
            feed_forward_norm="pre_feedforward_layernorm",
            sandwich=True,
            windows="by_layer",
            rotary="by_layer",
        ),
        BackboneSpec(
            family="gpt2",
            norm_kind="layer",
            layers="h",
            embed="wte",
            position_table="wpe",
            embed_dropout="drop",
            final_norm="ln_f",
            attention_norm="ln_1",
            feed_forward_norm="ln_2",
            rotary="none",
            lora_targets=("c_attn", "c_proj", "c_fc"),
        ),
        BackboneSpec(
            family="gpt_neox",
            norm_kind="layer",
            embed="embed_in",
            embed_dropout="emb_dropout",
            final_norm="final_layer_norm",
            cache_argument="layer_past",
            lora_targets=("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        ),
        BackboneSpec(
            family="opt",
            norm_kind="layer",
            decoder="decoder",
            position_table="embed_positions",
            input_projection="project_in",
            final_norm="final_layer_norm",
            attention_norm="self_attn_layer_norm",
            feed_forward_norm="final_layer_norm",
            rotary="none",
            lora_targets=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
        ),
        BackboneSpec(
            family="openelm",
            embed="token_embeddings",
            attention_norm="attn_norm",
            feed_forward_norm="ffn_norm",
            lora_targets=("qkv_proj", "out_proj", "proj_1", "proj_2"),
        ),
    )
}


def resolve_spec(model: nn.Module, spec: BackboneSpec | None = None) -> BackboneSpec:
    """The spec of a Hugging Face decoder, checked against the modules that are really there.

    Args:
        model: A causal LM, its headless base model, or either inside a peft wrapper.
        spec: An explicit layout for a family that is not listed; checked the same way.

    Returns:
        The family's spec with the values that depend on the config filled in.

    Raises:
        ValueError: the family is unknown (known ones and the first missing attribute are named), or a listed part is
            missing from this model.
    """
    config = unwrapped(model).config
    family = config.model_type
    if spec is None:
        spec = FAMILIES.get(family)
    if spec is None:
        gap = missing_attribute(model, FAMILIES["llama"])
        found = f"read as a Llama-like model it lacks {gap}" if gap else "its names fit the Llama layout"
        raise ValueError(
            f"{type(model).__name__}: no layout for model type {family!r} ({found}); known families: "
            f"{', '.join(sorted(FAMILIES))}. Describe it with "
            f"LanguageBackbone(model, spec=BackboneSpec(family={family!r}, ...))"
        )
    gap = missing_attribute(model, spec)
    if gap:
        raise ValueError(
            f"{type(model).__name__} ({family}): attribute {gap} is missing, so this variant cannot be used; "
            "pass spec=BackboneSpec(...) with the right names"
        )
    embedding = reach(decoder_of(model, spec), spec.embed)
    return replace(
        spec,
        embed_scale=float(getattr(embedding, "scalar_embed_scale", spec.embed_scale)),
        parallel=bool(getattr(config, "use_parallel_residual", spec.parallel)),
    )


def unwrapped(model: Any) -> Any:
    """The Hugging Face model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(model: nn.Module, spec: BackboneSpec) -> nn.Module:
    """The module that holds embedding, blocks and final norm."""
    base = unwrapped(model).base_model
    return base.get_submodule(spec.decoder)  # type: ignore[no-any-return]


def missing_attribute(model: nn.Module, spec: BackboneSpec) -> str | None:
    """Dotted name of the first part of `spec` that `model` does not have, or None."""
    base = unwrapped(model).base_model
    decoder = reach(base, spec.decoder)
    if decoder is None:
        return spec.decoder
    prefix = f"{spec.decoder}." if spec.decoder else ""
    rotary = "" if spec.rotary == "none" else "rotary_emb"
    for path in (spec.embed, spec.layers, spec.final_norm, spec.position_table, spec.embed_dropout, rotary):
        if path and reach(decoder, path) is None:
            return prefix + path
    block = reach(decoder, f"{spec.layers}.0")
    for path in (spec.attention_norm, spec.feed_forward_norm):
        if block is None or reach(block, path) is None:
            return f"{prefix}{spec.layers}.0.{path}"
    return None


def reach(root: Any, path: str) -> Any | None:
    """Follow a dotted path of attributes and list indices; None where it breaks off."""
    for name in filter(None, path.split(".")):
        root = getattr(root, name, None)
        if root is None:
            return None
    return root
