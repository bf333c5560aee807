"""Decoding time of the sampler as it is written against the loop of the released code, same network, same result.

The naive loop decodes one window after the other, calls the network twice per step (with and without condition) and
projects the condition to keys and values in every call. Ours does all windows and both branches in one call per step,
what both have in common once, and projects once per window. Weights are random: time does not depend on them. Both give
the same latents; the largest difference stands in the row. Encoding and decoding as a user calls them follow.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mm.codecs.semanticodec.codec import SemantiCodec
from mm.codecs.semanticodec.config import SAMPLE_RATE, DecoderConfig, SemantiCodecConfig, paper, tiny
from mm.codecs.semanticodec.ddim import ddim
from mm.codecs.semanticodec.decoder import SemantiCodecDecoder
from mm.codecs.semanticodec.noise import WindowNoise
from mm.codecs.semanticodec.windows import cut_windows, window_ranges
from mm.metrics.latency import measure

GUIDANCE = 2.0
FAST_STEPS = 10
OFFICIAL_STEPS = 50


class Candidates:
    """The same sound decoded in different ways.

    Args:
        config: Sizes of the decoder.
        seconds: Length of the sound.
        steps: Sampling steps.
        device: Where it runs.
        dtype: Precision of network and condition.
    """

    def __init__(
        self, config: DecoderConfig, *, seconds: float, steps: int, device: str, dtype: torch.dtype = torch.float32
    ) -> None:
        self.steps = steps
        self.decoder = _random_decoder(config).to(device, dtype).eval()
        tokens = max(round(seconds * 16_000 / self.decoder.samples_per_token), 1)
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(1, tokens, config.feature_width, generator=generator).to(device, dtype)
        ranges = window_ranges(tokens, config.window_tokens, config.overlap_tokens)
        self.windows = cut_windows(features, ranges, config.window_tokens)[0]
        noise = WindowNoise(0, range(len(ranges)), config.latent_shape, self.decoder.latent_overlap, device=device)
        self.start = noise()

    def naive(self) -> Tensor:
        """One window at a time, two calls per step, keys and values projected in every call."""
        decoder, found = self.decoder, []
        for window, start in zip(self.windows, self.start, strict=True):
            condition = decoder.condition(window[None])
            without = decoder.condition(torch.zeros_like(window)[None])

            def denoise(x: Tensor, t: Tensor, condition: Tensor = condition, without: Tensor = without) -> Tensor:
                x = x.to(condition.dtype)
                with_it = decoder.unet(x, t, decoder.unet.read_context(condition)).float()
                bare = decoder.unet(x, t, decoder.unet.read_context(without)).float()
                return bare + GUIDANCE * (with_it - bare)

            found.append(self._sample(denoise, start[None]))
        return torch.cat(found)

    def ours(self) -> Tensor:
        """All windows and both branches in one call, keys and values projected once."""
        return self._sample(self.decoder.denoiser(self.windows, GUIDANCE), self.start)

    def fast(self) -> Tensor:
        """`ours` with DPM-Solver++ in `FAST_STEPS` steps: another sampler, hence another result."""
        from mm.codecs.semanticodec.dpm import dpm_solver

        denoise = self.decoder.denoiser(self.windows, GUIDANCE)
        return dpm_solver(denoise, self.start, self.decoder.schedule, steps=FAST_STEPS, spacing="trailing")

    def _sample(self, denoise: Any, start: Tensor) -> Tensor:
        spacing = self.decoder.config.diffusion.spacing
        return ddim(denoise, start, self.decoder.schedule, steps=self.steps, spacing=spacing)


@torch.inference_mode()
def rows(
    *, device: str = "cpu", repeats: int = 30, seconds: float | None = None, steps: int = 25
) -> list[dict[str, Any]]:
    """Naive loop, ours and the fast sampler, alternating in one run; then the whole codec.

    Args:
        device: "cpu" times the tiny sizes; a GPU the published ones at 50 tokens per second, decoder in bfloat16.
        repeats: Samples per candidate.
        seconds: Length of the sound; none takes 6 s on a CPU and 60 s on a GPU.
        steps: Sampling steps.

    Returns:
        Rows {setting, what, windows, ms, speedup, real_time_factor, largest_difference}.
    """
    tiny_sizes = torch.device(device).type == "cpu"
    config, dtype = (tiny(), torch.float32) if tiny_sizes else (paper(50), torch.bfloat16)
    seconds = seconds or (6.0 if tiny_sizes else 60.0)
    setting = f"{'tiny' if tiny_sizes else 'published'} sizes, {seconds:g} s, {str(dtype)[6:]}, {device}"
    found = _sampling(config.decoder, seconds, steps, device, dtype, repeats)
    found += _whole(config, seconds, steps, device, dtype, repeats)
    return [{"setting": setting, **row, "real_time_factor": 1000 * seconds / row["ms"]} for row in found]


def _sampling(
    config: DecoderConfig, seconds: float, steps: int, device: str, dtype: torch.dtype, repeats: int
) -> list[dict[str, Any]]:
    """Latents from the same condition in different ways."""
    made = Candidates(config, seconds=seconds, steps=steps, device=device, dtype=dtype)
    naive, ours = made.naive(), made.ours()
    difference = float((naive - ours).abs().max() / naive.abs().max())
    named = {f"latents: naive loop, DDIM {steps}": made.naive, f"latents: ours, DDIM {steps}": made.ours}
    if find_spec("diffusers") is not None:
        named[f"latents: ours, DPM-Solver++ {FAST_STEPS}"] = made.fast
    times = [row.median_ms for row in measure(named, repeats=repeats, warmup=1, device=device)]
    return [
        {
            "what": name,
            "windows": len(made.windows),
            "ms": ms,
            "speedup": times[0] / ms,
            "largest_difference": {0: 0.0, 1: difference}.get(index),
        }
        for index, (name, ms) in enumerate(zip(named, times, strict=True))
    ]


def _whole(
    config: SemantiCodecConfig, seconds: float, steps: int, device: str, dtype: torch.dtype, repeats: int
) -> list[dict[str, Any]]:
    """Waveform to tokens and tokens to waveform, with everything that belongs to it."""
    codec = SemantiCodec(config).eval().to(device)
    codec.decoder.to(dtype)
    wave = 0.1 * torch.randn(1, round(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))
    tokens = codec.encode(wave, SAMPLE_RATE)
    named = {"encode": lambda: codec.encode(wave, SAMPLE_RATE)}
    for count in (steps, OFFICIAL_STEPS):
        named[f"decode, DDIM {count}"] = partial(codec.decode, tokens, steps=count)
    found = measure(named, repeats=max(repeats // 5, 1), warmup=1, device=device)
    return [{"what": row.candidate, "ms": row.median_ms} for row in found]


def _random_decoder(config: DecoderConfig) -> SemantiCodecDecoder:
    """A decoder whose zero-initialised layers have values, so that a difference between candidates can show."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = SemantiCodecDecoder(config)
        for parameter in decoder.unet.parameters():
            if parameter.dim() > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return decoder
