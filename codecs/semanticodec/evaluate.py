"""What the shipped codec scores on held-out made sounds, with the controls that a fake would not pass.

    error of v         unquantised condition < tokens < semantic tokens alone < tokens of another sound
    mel error          of decoded sounds in the same order; the autoencoder without diffusion is below all of them
    retrieval          a decoded mel is nearer to its own source than to any other
    probe              semantic tokens tell speech, music and other sounds apart

Dims: B sounds, T mel frames, F mel bins, N token pairs, C condition channels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mm.codecs.quantize import perplexity
from mm.codecs.semanticodec.codec import SemantiCodec
from mm.codecs.semanticodec.decoder import Sampling
from mm.codecs.semanticodec.encoder import Encoded
from mm.codecs.semanticodec.mel import LogMel
from mm.codecs.semanticodec.metrics import mel_distance, retrieval_accuracy
from mm.codecs.semanticodec.noise import WindowNoise
from mm.codecs.semanticodec.probe import averaged, probe_accuracy
from mm.codecs.semanticodec.sound_data import SoundDataConfig, sound_rows
from mm.data.split import Split, SplitName

CANDIDATES = 16
"""Sounds among which a decoded one must find its source."""
NOISE_LEVELS = 4
"""At which the error of v is measured, evenly spread."""


def held_out(codec: SemantiCodec, seed: int, count: int, split: SplitName = "test") -> dict[str, Tensor]:
    """Sounds of one segment each: `waves` (B, S + 240), `domains` and `labels` (B,)."""
    first = Split(split).seed(seed * count)
    samples = codec.config.encoder.segment_samples
    return sound_rows(SoundDataConfig(samples=samples), range(first, first + count))


@torch.inference_mode()
def evaluate(codec: SemantiCodec, *, seed: int, count: int = 32, steps: int = 8) -> dict[str, float]:
    """All scores.

    Args:
        codec: With weights.
        seed: Which held-out sounds, and of the sampler's noise.
        count: Sounds that are decoded, a multiple of 16.
        steps: Sampling steps.
    """
    sounds = held_out(codec, seed, count)
    segment = codec.config.encoder.segment_samples
    target = LogMel(codec.config.decoder.vae.mel_bins)(sounds["waves"][:, :segment])
    encoded = codec.encoder(codec.bank(sounds["waves"]))
    compared = conditions(encoded)
    decoded = {name: decoded_mel(codec, features, seed, steps) for name, features in compared.items()}
    wave = codec.decoder.wave(decoded["tokens"][:, None])[:, 0]
    tokens = encoded.tokens[encoded.keep]
    return {
        **{f"v_error_{name}": value for name, value in v_errors(codec, compared, target, seed).items()},
        "mel_error_autoencoder": float((codec.decoder.vae(target[:, None])[:, 0] - target).abs().mean()),
        **{f"mel_error_{name}": float((mel - target).abs().mean()) for name, mel in decoded.items()},
        "retrieval_top1": retrieval(decoded["tokens"], target),
        "retrieval_top1_shuffled": retrieval(decoded["shuffled"], target),
        "mel_distance": float(mel_distance(wave, sounds["waves"][:, :segment]).mean()),
        "mel_distance_shuffled": float(mel_distance(wave.roll(1, 0), sounds["waves"][:, :segment]).mean()),
        "semantic_perplexity_share": usage(tokens[:, 0], codec.semantic_vocabs[-1]),
        "acoustic_perplexity_share": usage(tokens[:, 1], codec.acoustic_vocab),
        **probes(codec, seed),
    }


def conditions(encoded: Encoded) -> dict[str, Tensor]:
    """Decoder features (B, N, C) of the comparison, best first."""
    half = encoded.condition.shape[-1] // 2
    semantic_only = encoded.condition.clone()
    semantic_only[..., :half] = 0
    return {
        "unquantized": encoded.unquantized,
        "tokens": encoded.condition,
        "semantic_only": semantic_only,
        "shuffled": encoded.condition.roll(1, 0),
    }


@torch.inference_mode()
def v_errors(codec: SemantiCodec, compared: dict[str, Tensor], target: Tensor, seed: int) -> dict[str, float]:
    """Squared error of predicted v per condition (B, N, C), same noise and noise levels for all.

    No sampling stands in between, so small differences show that drown in the spread of decoded sounds.
    """
    decoder, generator = codec.decoder, torch.Generator().manual_seed(seed)
    clean = decoder.vae.encode(target[:, None]).mean * decoder.scale_factor
    context = decoder.unet.read_context(decoder.condition(torch.cat(list(compared.values()))))
    errors = torch.zeros(len(compared))
    for level in range(NOISE_LEVELS):
        middle = (2 * level + 1) * decoder.schedule.num_timesteps // (2 * NOISE_LEVELS)
        timesteps = torch.full((len(clean),), middle)
        noise = torch.randn(clean.shape, generator=generator)
        found = decoder.unet(decoder.schedule.noisy(clean, noise, timesteps), timesteps, context)
        wanted = decoder.schedule.velocity(clean, noise, timesteps)
        errors += torch.stack([(part - wanted).square().mean() for part in found.chunk(len(compared))]) / NOISE_LEVELS
    return dict(zip(compared, errors.tolist(), strict=True))


@torch.inference_mode()
def decoded_mel(codec: SemantiCodec, features: Tensor, seed: int, steps: int) -> Tensor:
    """Mel spectrogram (B, T, F) of features (B, N, C) of one window each; all rows start from the same noise."""
    decoder = codec.decoder
    noise = WindowNoise(seed, [0] * len(features), codec.config.decoder.latent_shape, decoder.latent_overlap)
    return decoder.mel(decoder.sample(features, noise, Sampling(steps=steps, eta=0.0)))[:, 0]


def usage(codes: Tensor, size: int) -> float:
    """Perplexity of codes as a share of the codebook: 1 / size (one code) .. 1 (all equally often)."""
    return float(perplexity(codes, size)) / size


def retrieval(found: Tensor, expected: Tensor) -> float:
    """Share of mels (B, T, F) that are nearest to their own source among 16, 0 to 1."""
    groups = [retrieval_accuracy(a, b, _mel_error) for a, b in _groups(found, expected)]
    return sum(groups) / len(groups)


def _groups(found: Tensor, expected: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(found.split(CANDIDATES), expected.split(CANDIDATES), strict=True))


def _mel_error(found: Tensor, expected: Tensor) -> Tensor:
    return (found - expected).abs().mean((1, 2))


@torch.inference_mode()
def probes(codec: SemantiCodec, seed: int, count: int = 240) -> dict[str, float]:
    """Accuracy of the domain (3 classes) from semantic and from acoustic codewords, and with shuffled labels."""
    parts = {split: _codewords(codec, held_out(codec, seed, count, split)) for split in ("validation", "test")}
    (semantic, acoustic, labels), (semantic_test, acoustic_test, labels_test) = parts["validation"], parts["test"]
    shuffled = np.random.default_rng(seed).permutation(labels)
    return {
        "probe_semantic": probe_accuracy((semantic, labels), (semantic_test, labels_test)),
        "probe_acoustic": probe_accuracy((acoustic, labels), (acoustic_test, labels_test)),
        "probe_shuffled_labels": probe_accuracy((semantic, shuffled), (semantic_test, labels_test)),
    }


def _codewords(codec: SemantiCodec, sounds: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Averaged semantic and acoustic codewords, and domains."""
    found = []
    for waves in sounds["waves"].split(64):
        encoded = codec.encoder(codec.bank(waves))
        tokens = encoded.tokens.masked_fill(~encoded.keep[..., None], -1)
        embedded = codec.encoder.embed(encoded.tokens)
        half = embedded.shape[-1] // 2
        found.append((averaged(embedded[..., half:], tokens), averaged(embedded[..., :half], tokens)))
    semantic, acoustic = (np.concatenate(part) for part in zip(*found, strict=True))
    return semantic, acoustic, sounds["domains"].numpy()
