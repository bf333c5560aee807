"""Put LaVi on a Hugging Face causal LM, and take it off again.

Attaching swaps the class of the chosen norms in place (`mm.backbone.graft`): paths, state-dict keys, `isinstance`,
saving, peft (before or after) and sharding of the language model stay as they are, and at the start every output is bit
for bit what it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mm.backbone import BackboneSpec, LanguageBackbone, ungraft
from mm.encoders.lavi.conditioners import Conditioners
from mm.encoders.lavi.config import LaviConfig, Site, modulated_layers
from mm.encoders.lavi.lavi import Lavi
from mm.encoders.lavi.projector import build_projector
from mm.encoders.lavi.stage import Stage, forget_frames
from mm.encoders.lavi.viln import Modulation, ViLN, modulate

POST_NORM_FAMILIES = ("olmo2", "olmo3")
"""Decoders that normalise the *output* of attention and feed-forward only."""


def attach(
    model: nn.Module,
    config: LaviConfig,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    spec: BackboneSpec | None = None,
) -> Lavi:
    """Let the norms of a causal LM see pictures.

    Args:
        model: A Hugging Face causal LM (or a peft wrapper of one), changed in place and reversibly; its parameters
            are neither copied nor frozen (see `mm.encoders.lavi.groups`).
        config: What is modulated, by what.
        seed: Draws the new weights; the global random state is left as it was.
        dtype: Of the new weights; None takes the language model's, or float32 where that is float16 or integer.
        spec: Layout of a family that `mm.backbone` does not know.

    Returns:
        The model with its visual path; until it is trained it equals the plain language model.

    Raises:
        ValueError: a family without norms in front of attention and feed-forward, blocks or sites that do not exist, a
            norm that cannot be modulated, or a model that carries LaVi already. The model is unchanged then.

    Example:
        >>> from mm.backbone.tiny import tiny_model
        >>> config = LaviConfig(vision_width=8, width=16, num_heads=4, num_kv_heads=2, layers="every:2")
        >>> lavi = attach(tiny_model("llama"), config)
        >>> context = lavi.encode_vision(torch.randn(1, 9, 8))
        >>> lavi(torch.tensor([[1, 5, 6]]), visual=context).logits.shape
        torch.Size([1, 3, 64])
    """
    backbone = _backbone(model, spec)
    if any(isinstance(module, ViLN) for module in backbone.decoder.modules()):
        raise ValueError("this language model carries LaVi already; detach(...) it first")
    layers = modulated_layers(config.layers, backbone.depth)
    sites = _available_sites(backbone, config)
    weight = next(backbone.embedding.parameters())
    if dtype is None:
        dtype = weight.dtype if weight.dtype in (torch.float32, torch.bfloat16, torch.float64) else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projector = build_projector(config, len(layers))
        conditioners = Conditioners(config, backbone.width, layers, sites)
    stage = Stage(config.delta_scale)
    _modulate_norms(backbone, conditioners, stage, layers, sites, config.relative)
    lavi = Lavi(
        language_model=model,
        backbone=backbone,
        config=config,
        visual_proj=projector.to(device=weight.device, dtype=dtype),
        cond=conditioners.to(device=weight.device, dtype=dtype),
        stage=stage,
    )
    return lavi.train(model.training)


def detach(lavi: Lavi) -> nn.Module:
    """Take LaVi off its language model, which is returned as it was before `attach` (trained weights apart).

    Raises:
        ValueError: detached already.
    """
    if not lavi.attached:
        raise ValueError("this LaVi adapter was detached already")
    for module in lavi.backbone.decoder.modules():
        if isinstance(module, ViLN):
            ungraft(module)  # type: ignore[type-var]
    lavi.view_hook.remove()
    forget_frames(lavi.backbone.layers)
    lavi.attached = False
    return lavi.language_model


def _backbone(model: nn.Module, spec: BackboneSpec | None) -> LanguageBackbone:
    """The adapter over the model's parts, refusing layouts whose norms do not feed the sub-layers."""
    wrapper: Any = model
    plain = wrapper.get_base_model() if hasattr(wrapper, "get_base_model") else model
    config = getattr(plain, "config", None)
    family = getattr(config, "model_type", type(plain).__name__)
    post_norm = family in POST_NORM_FAMILIES or not getattr(config, "do_layer_norm_before", True)
    if post_norm and spec is None:
        raise ValueError(
            f"{type(plain).__name__} ({family}) normalises behind attention and feed-forward, not in front of them, so "
            "there is no branch input for vision to modulate. Choose a pre-norm model, or pass spec=BackboneSpec(...) "
            "that names norms in front of the sub-layers"
        )
    return LanguageBackbone(plain, spec=spec)


def _available_sites(backbone: LanguageBackbone, config: LaviConfig) -> tuple[Site, ...]:
    """The sites to modulate; families with one norm for both sub-layers have one site, "attn".

    Raises:
        ValueError: only "ffn" was asked for and the family has no norm of its own there.
    """
    if not backbone.spec.shared_norm:
        return config.sites
    if "attn" not in config.sites:
        raise ValueError(
            f"{backbone.spec.family} blocks have one norm for both sub-layers; modulate it with sites=('attn',)"
        )
    return ("attn",)


def _modulate_norms(
    backbone: LanguageBackbone,
    conditioners: Conditioners,
    stage: Stage,
    layers: tuple[int, ...],
    sites: tuple[Site, ...],
    relative: bool,
) -> None:
    """Graft every chosen norm, or none: an error undoes the ones before it."""
    done: list[nn.Module] = []
    try:
        for layer in layers:
            norms = dict(zip(("attn", "ffn"), backbone.norms(layer), strict=True))
            for site in sites:
                conditioner = conditioners.block(layer).site(site)
                kind = backbone.spec.norm_kind
                done.append(
                    modulate(
                        norms[site],
                        Modulation(conditioner, stage, kind=kind, layer=layer, site=site, relative=relative),
                    )
                )
    except Exception:
        for norm in done:
            ungraft(norm)
        raise
