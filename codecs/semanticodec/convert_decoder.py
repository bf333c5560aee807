"""Names of the published `decoder.ckpt` <-> ours, and its strict reading.

The file holds one U-Net, one autoencoder, one vocoder, twelve tables of the noise schedule, a scale factor, and a
second copy of the U-Net (moving average) under flattened names. Released inference uses the plain weights.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mm.checkpoint import load_state
from mm.codecs.semanticodec.config import DecoderConfig
from mm.codecs.semanticodec.decoder import SemantiCodecDecoder
from mm.codecs.semanticodec.schedule import schedule_tables

logger = logging.getLogger(__name__)

UNET, FIRST_STAGE, EMA = "model.diffusion_model.", "first_stage_model.", "model_ema."
TABLE = "alphas_cumprod"
TABLES = tuple(schedule_tables(np.array([0.5])))
OWN_TABLE = "schedule.table_bits"
UNUSED = ("logvar", "model_ema.decay", "model_ema.num_updates")
"""Carried by the file and read by nothing."""

UNET_RULES = (
    (r"^time_in\.", "time_embed.0."),
    (r"^time_out\.", "time_embed.2."),
    (r"^norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^inputs\.0\.", "input_blocks.0.0."),
    (r"^inputs\.(\d+)\.(weight|bias)$", r"input_blocks.\1.0.op.\2"),
    (r"^inputs\.", "input_blocks."),
    (r"^outputs\.", "output_blocks."),
    (r"^middle\.first\.res\.", "middle_block.0.res."),
    (r"^middle\.first\.", "middle_block."),
    (r"^middle\.last\.", "middle_block.3.res."),
    (r"\.res\.norm1\.", ".res.in_layers.0."),
    (r"\.res\.conv1\.", ".res.in_layers.2."),
    (r"\.res\.time\.", ".res.emb_layers.1."),
    (r"\.res\.norm2\.", ".res.out_layers.0."),
    (r"\.res\.conv2\.", ".res.out_layers.3."),
    (r"\.res\.skip\.", ".res.skip_connection."),
    (r"^(middle_block\.\d)\.res\.", r"\1."),
    (r"\.res\.", ".0."),
    (r"\.self_attention\.", ".1."),
    (r"\.cross_attention\.", ".2."),
    (r"\.blocks\.(\d+)\.", r".transformer_blocks.\1."),
    (r"\.attention([12])\.", r".attn\1."),
    (r"\.([qkv])_proj\.", r".to_\1."),
    (r"\.out_proj\.", ".to_out.0."),
    (r"\.feed_forward\.up_proj\.", ".ff.net.0.proj."),
    (r"\.feed_forward\.down_proj\.", ".ff.net.2."),
)
"""Our U-Net -> published, applied in order; the place of an up-sampling depends on its neighbours, see `_unet_name`."""

VAE_RULES = (
    (r"^to_moments\.", "quant_conv."),
    (r"^from_latents\.", "post_quant_conv."),
    (r"^encoder\.levels\.", "encoder.down."),
    (r"\.blocks\.", ".block."),
    (r"^encoder(.*)\.resize\.", r"encoder\1.downsample."),
    (r"^decoder(.*)\.resize\.", r"decoder\1.upsample."),
    (r"\.middle\.0\.", ".mid.block_1."),
    (r"\.middle\.1\.", ".mid.attn_1."),
    (r"\.middle\.2\.", ".mid.block_2."),
    (r"\.skip\.", ".nin_shortcut."),
    (r"\.([qkv])_proj\.", r".\1."),
    (r"\.out_proj\.", ".proj_out."),
)
"""Our autoencoder -> published; the decoder's levels are counted the other way round there, see `_vae_name`."""

VOCODER_RULES = (
    (r"^conv_in\.", "conv_pre."),
    (r"^conv_out\.", "conv_post."),
    (r"^upsamples\.", "ups."),
    (r"\.dilated\.", ".convs1."),
    (r"\.plain\.", ".convs2."),
)
"""Our vocoder -> published; its residual blocks are one flat list there, see `_vocoder_name`."""


def key_map(decoder: SemantiCodecDecoder) -> dict[str, str]:
    """Our state-dict key -> published key, for everything but the table of the noise schedule."""
    own = decoder.state_dict()
    attending = {match[1] for key in own if (match := re.match(r"unet\.outputs\.(\d+)\.self_attention\.", key))}
    return {key: _published(key, decoder.config, attending) for key in own if key != OWN_TABLE}


def _published(key: str, config: DecoderConfig, attending: set[str]) -> str:
    part, _, name = key.partition(".")
    if part == "unet":
        return UNET + _unet_name(name, attending)
    if part == "vae":
        return FIRST_STAGE + _vae_name(name, len(config.vae.multipliers))
    if part == "vocoder":
        return f"{FIRST_STAGE}vocoder." + _vocoder_name(name, len(config.vocoder.res_kernels))
    return key


def _unet_name(name: str, attending: set[str]) -> str:
    upsampling = re.match(r"outputs\.(\d+)\.upsample\.(.*)", name)
    if upsampling:
        index, rest = upsampling.groups()
        return f"output_blocks.{index}.{3 if index in attending else 1}.{rest}"
    return _renamed(name, UNET_RULES)


def _vae_name(name: str, levels: int) -> str:
    flipped = re.sub(r"^decoder\.levels\.(\d+)\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.", name)
    return _renamed(flipped, VAE_RULES)


def _vocoder_name(name: str, kernels: int) -> str:
    flat = re.sub(r"^blocks\.(\d+)\.(\d+)\.", lambda m: f"resblocks.{int(m[1]) * kernels + int(m[2])}.", name)
    return _renamed(flat, VOCODER_RULES)


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def averaged_key(published: str) -> str:
    """Where the file keeps the moving average of a U-Net tensor.

    Example:
        >>> averaged_key("model.diffusion_model.out.2.bias")
        'model_ema.diffusion_modelout2bias'
    """
    return EMA + published.removeprefix("model.").replace(".", "")


@dataclass(frozen=True, kw_only=True)
class DecoderReport:
    """What became of the tensors of a file."""

    loaded: int
    """Read into the decoder."""
    averaged: int
    """Moving averages: read instead of the plain U-Net if that was asked for, else left."""
    tables: int
    """Tables of the noise schedule; all follow from one of them, which is read."""
    unused: int
    """Read by nothing in the released code, either."""


def load_official_decoder(
    decoder: SemantiCodecDecoder, tensors: Mapping[str, Tensor], *, source: str, average: bool = False
) -> DecoderReport:
    """Read a published decoder into `decoder`, whole or not at all.

    Args:
        decoder: Built for the sizes of the file; `DiffusionConfig.timesteps` included.
        tensors: Content of `decoder.ckpt`.
        source: Named in errors.
        average: Take the moving average of the U-Net; released inference takes the plain weights.

    Raises:
        ValueError: keys missing, unexpected or of another shape, listed by name; or tables of the noise schedule that
            contradict one another.
    """
    names = key_map(decoder)
    wanted = {ours: averaged_key(name) if average and name.startswith(UNET) else name for ours, name in names.items()}
    tables = set(TABLES)
    averages = {averaged_key(name) for name in names.values() if name.startswith(UNET)}
    _check_keys(tensors, {*wanted.values(), *tables}, {*names.values(), *averages, *UNUSED}, source)
    _check_tables(tensors, source)
    state = {ours: tensors[name] for ours, name in wanted.items()}
    state[OWN_TABLE] = tensors[TABLE].float().contiguous().view(torch.int32)
    load_state(decoder, state, source=source)
    present = set(tensors)
    report = DecoderReport(
        loaded=len(wanted),
        averaged=len(averages & present),
        tables=len(tables),
        unused=len(set(UNUSED) & present),
    )
    logger.info("%s: %s", source, report)
    return report


def _check_keys(tensors: Mapping[str, Tensor], needed: set[str], known: set[str], source: str) -> None:
    missing = sorted(needed - set(tensors))
    unexpected = sorted(set(tensors) - needed - known)
    if missing or unexpected:
        shown = "; ".join(
            f"{title} ({len(keys)}): {', '.join(keys[:12])}{', …' if len(keys) > 12 else ''}"
            for title, keys in (("missing", missing), ("unexpected", unexpected))
            if keys
        )
        raise ValueError(f"{source} is not a published decoder of these sizes: {shown}")


def _check_tables(tensors: Mapping[str, Tensor], source: str) -> None:
    """The sampler reads abar_t alone; a file whose other tables say something else would decode differently there."""
    share = tensors[TABLE].double()
    for name, expected in (
        ("sqrt_alphas_cumprod", share.sqrt()),
        ("sqrt_one_minus_alphas_cumprod", (1 - share).sqrt()),
    ):
        found = tensors[name].double()
        if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-3, rtol=0):
            raise ValueError(f"{source}: the table {name} contradicts {TABLE}; the file is damaged or edited")


def official_decoder_state(decoder: SemantiCodecDecoder) -> dict[str, Tensor]:
    """All tensors of `decoder` under their published names, tables and moving averages included."""
    own, names = decoder.state_dict(), key_map(decoder)
    state = {name: own[ours].clone() for ours, name in names.items()}
    state |= {averaged_key(name): value.clone() for name, value in state.items() if name.startswith(UNET)}
    share = decoder.schedule.alphas_cumprod.double()
    betas = 1 - share / torch.cat([share.new_ones(1), share[:-1]])
    state |= schedule_tables(betas.numpy()) | {TABLE: share.float()}
    state["logvar"] = torch.zeros(len(share))
    state["model_ema.decay"] = torch.tensor(0.9999)
    state["model_ema.num_updates"] = torch.tensor(0)
    return state
