"""From token features to a waveform: latent diffusion, mel autoencoder, vocoder, window by window.

Dims: B batch, W windows, N tokens, n tokens per window, C feature channels (2D), Z T F latent channels, frames, bins.
Source: SemantiCodec (arXiv:2405.00233), section III-C and the released decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from mm.codecs.semanticodec.config import HOP, DecoderConfig
from mm.codecs.semanticodec.ddim import Denoise, ddim
from mm.codecs.semanticodec.decoder_parts import position_code
from mm.codecs.semanticodec.dpm import dpm_solver
from mm.codecs.semanticodec.hifigan import HifiGan
from mm.codecs.semanticodec.noise import WindowNoise
from mm.codecs.semanticodec.schedule import NoiseSchedule
from mm.codecs.semanticodec.unet import UNet
from mm.codecs.semanticodec.vae import MelVae
from mm.codecs.semanticodec.windows import cross_fade, cut_windows, masked_tail, window_ranges

Sampler = Literal["ddim", "dpm++"]
WINDOWS_AT_ONCE = 16
"""Windows that run as one batch unless the caller says otherwise: 2.5 minutes of sound."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How latents are drawn; what is none comes from the configuration of the decoder."""

    steps: int | None = None
    """Steps of the sampler."""
    guidance: float | None = None
    """w in v = v_uncond + w (v_cond - v_uncond); 1 skips the unconditional half, 0 the conditional one."""
    seed: int = 0
    """Of the noise."""
    sampler: Sampler = "ddim"
    """ddim (released) or dpm++ (10 to 20 steps)."""
    eta: float | None = None
    """Noise of DDIM, 0 to 1."""

    def __post_init__(self) -> None:
        if self.sampler not in ("ddim", "dpm++"):
            raise ValueError(f"sampler must be 'ddim' or 'dpm++', got {self.sampler!r}")
        if self.sampler == "dpm++" and self.eta:
            raise ValueError(f"eta={self.eta} has no effect with sampler 'dpm++'; use sampler='ddim'")


class SemantiCodecDecoder(nn.Module):
    """Waveform of the token features [acoustic ; semantic].

    Args:
        config: Sizes and defaults.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = UNet(config.unet)
        self.vae = MelVae(config.vae)
        self.vocoder = HifiGan(config.vocoder)
        self.schedule = NoiseSchedule(config.diffusion)
        self.register_buffer("scale_factor", torch.ones(()))
        self.scale_factor: Tensor
        """Latents are multiplied by this before diffusion: one over their spread in the first training batch."""
        code = position_code(config.window_tokens, config.position_width)
        self.register_buffer("position", code, persistent=False)
        self.position: Tensor

    # --- sizes -------------------------------------------------------------------------------------------------------

    @property
    def samples_per_token(self) -> int:
        """320 K: samples that one more token pair adds (tokens of one column share a stretch of time)."""
        return self.config.window_samples // self.config.window_tokens

    @property
    def overlap_samples(self) -> int:
        """Samples that neighbouring windows share."""
        return self.config.overlap_frames * HOP

    @property
    def latent_overlap(self) -> int:
        """Latent frames that neighbouring windows share."""
        return self.config.overlap_frames // self.config.vae.factor

    # --- condition ---------------------------------------------------------------------------------------------------

    def condition(self, features: Tensor) -> Tensor:
        """[features ; position code] of windows (W, n, C) -> (W, n, C + position_width)."""
        code = self.position.to(features.dtype)
        return torch.cat([features, repeat(code, "n p -> w n p", w=len(features))], dim=-1)

    def denoiser(self, features: Tensor, guidance: float) -> Denoise:
        """The guided network for windows `features` (W, n, C).

        Keys and values of the condition are computed here, once, and the conditional and the unconditional prediction
        are one call, in which both share what comes before the first look at the condition. The unconditional features
        are zeros; their position code stays.

        Returns:
            (x (W, Z, T, F), timesteps (W,)) -> v (W, Z, T, F), both float32; the network runs in its own dtype.
        """
        dtype = next(self.unet.parameters()).dtype
        features = features.to(dtype)
        if guidance in (0.0, 1.0):
            context = self.unet.read_context(self.condition(features if guidance else torch.zeros_like(features)))
            return lambda x, timesteps: self.unet(x.to(dtype), timesteps, context).float()
        both = torch.cat([features, torch.zeros_like(features)])
        context = self.unet.read_context(self.condition(both))

        def guided(x: Tensor, timesteps: Tensor) -> Tensor:
            conditional, unconditional = self.unet(x.to(dtype), timesteps, context).float().chunk(2)
            return unconditional + guidance * (conditional - unconditional)  # type: ignore[no-any-return]

        return guided

    # --- stages ------------------------------------------------------------------------------------------------------

    def sample(self, features: Tensor, noise: Callable[[], Tensor], sampling: Sampling) -> Tensor:
        """Latents (W, Z, T, F) float32 of windows (W, n, C); `noise` gives the start, then the noise of every step."""
        defaults = self.config.diffusion
        steps = defaults.steps if sampling.steps is None else sampling.steps
        guidance = defaults.guidance if sampling.guidance is None else sampling.guidance
        denoise, x = self.denoiser(features, guidance), noise()
        if sampling.sampler == "dpm++":
            return dpm_solver(denoise, x, self.schedule, steps=steps, spacing=defaults.spacing)
        eta = defaults.eta if sampling.eta is None else sampling.eta
        return ddim(denoise, x, self.schedule, steps=steps, eta=eta, noise=noise, spacing=defaults.spacing)

    def mel(self, latents: Tensor) -> Tensor:
        """Log-mel spectrogram (W, 1, frames, bins) of latents (W, Z, T, F)."""
        latents = latents.to(self.scale_factor.dtype) / self.scale_factor
        return self.vae.decode(latents)

    def wave(self, mel: Tensor, *, trim: bool = True) -> Tensor:
        """Waveform (W, 1, S) of a log-mel spectrogram (W, 1, frames, bins).

        Args:
            mel: What `mel` gives.
            trim: Cut to 160 samples per frame; the vocoder gives a few more. The released code does not cut.
        """
        wave = self.vocoder(rearrange(mel, "w 1 t f -> w f t"))
        return wave[..., : mel.shape[2] * HOP] if trim else wave  # type: ignore[no-any-return]

    # --- whole signals -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def stream(
        self,
        features: Tensor,
        sampling: Sampling | None = None,
        *,
        lengths: Tensor | None = None,
        windows_at_once: int = WINDOWS_AT_ONCE,
        official_joins: bool = False,
    ) -> Iterator[Tensor]:
        """Decode in order of time; memory does not grow with the length.

        Args:
            features: Token features [acoustic ; semantic], (B, N, C).
            sampling: Steps, guidance, seed, sampler.
            lengths: Token positions that each row has, (B,) int64; those behind count as padding. None = all N.
            windows_at_once: Windows of all rows that run as one batch.
            official_joins: Join untrimmed windows as the released code does (2 ms of drift per join).

        Yields:
            Stretches of the waveform, (B, 1, S); together N samples_per_token samples.

        Raises:
            ValueError: features of another shape, or no token.
        """
        sampling = sampling or Sampling()
        self._check(features, windows_at_once)
        if lengths is not None:
            features = masked_tail(features, lengths)
        left = features.shape[1] * self.samples_per_token
        waves = self._windows(features, sampling, windows_at_once, trim=not official_joins)
        for piece in cross_fade(waves, self.overlap_samples):
            piece = piece[..., :left]
            left -= piece.shape[-1]
            if piece.shape[-1]:
                yield piece

    def _windows(self, features: Tensor, sampling: Sampling, at_once: int, *, trim: bool) -> Iterator[Tensor]:
        """Waveform (B, 1, S) of every window in turn, computed in batches over windows and rows."""
        config, rows = self.config, len(features)
        ranges = window_ranges(features.shape[1], config.window_tokens, config.overlap_tokens)
        group = max(at_once // rows, 1)
        for first in range(0, len(ranges), group):
            chosen = range(first, min(first + group, len(ranges)))
            windows = cut_windows(features, [ranges[i] for i in chosen], config.window_tokens)
            noise = WindowNoise(
                sampling.seed,
                [i for _ in range(rows) for i in chosen],
                config.latent_shape,
                self.latent_overlap,
                device=features.device,
            )
            latents = self.sample(rearrange(windows, "b w n c -> (b w) n c"), noise, sampling)
            waves = rearrange(self.wave(self.mel(latents), trim=trim), "(b w) 1 s -> w b 1 s", b=rows)
            yield from waves

    def forward(
        self,
        features: Tensor,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        sampler: Sampler = "ddim",
        eta: float | None = None,
        lengths: Tensor | None = None,
        windows_at_once: int = WINDOWS_AT_ONCE,
        official_joins: bool = False,
    ) -> Tensor:
        """Waveform (B, 1, N samples_per_token) in [-1, 1] at 16 kHz; see `stream` and `Sampling` for the arguments."""
        sampling = Sampling(steps=steps, guidance=guidance, seed=seed, sampler=sampler, eta=eta)
        pieces = self.stream(
            features, sampling, lengths=lengths, windows_at_once=windows_at_once, official_joins=official_joins
        )
        return torch.cat(list(pieces), dim=-1)

    def _check(self, features: Tensor, windows_at_once: int) -> None:
        wanted = self.config.feature_width
        if features.dim() != 3 or features.shape[-1] != wanted:
            raise ValueError(f"features must be (batch, tokens, {wanted}), got {tuple(features.shape)}")
        if windows_at_once < 1:
            raise ValueError(f"windows_at_once must be at least 1, got {windows_at_once}")
