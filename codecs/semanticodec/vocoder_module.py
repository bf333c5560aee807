"""Training of the vocoder: mel error, adversarial least squares, feature matching.

    L_G = mel_weight |mel - mel(wave)| + adversarial + 2 matching         L_D = least squares

Source: HiFi-GAN (Kong et al., arXiv:2010.05646), section 2.4. Deviation: generator and discriminators take their steps
together, each from its own loss, in one optimiser; weight norm stays out of the generator, as in the released files.
A log-spectral and a spectral convergence term at two resolutions are offered: the adversarial terms need long runs, and
an error of logarithms alone leaves loud, narrow peaks, which hold most of the energy, for last.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mm.codecs.semanticodec.config import HOP
from mm.codecs.semanticodec.metrics import spectral_convergence, stft_distance
from mm.codecs.semanticodec.stage import CodecStage, frozen, start_codec
from mm.codecs.semanticodec.wave_discriminators import WaveDiscriminator, discriminator_loss, generator_losses
from mm.training.module import OptimizerConfig


class VocoderModule(CodecStage):
    """Train the vocoder of a codec.

    Args:
        codec: Weights to start from, see `mm.codecs.semanticodec.stage.start_codec`.
        preset: Sizes of a fresh codec.
        seed: Of its weights.
        frames: Mel frames per example, cut at random (51 are the paper's 8192 samples).
        mel_weight: Weight of the mel error.
        stft_weight: Weight of the log-spectral distance at several window sizes; 0 as in the paper.
        convergence_weight: Weight of the error of magnitudes relative to the sound's own energy; 0 as in the paper.
        matching_weight: Weight of the feature matching.
        discriminator_width: Channels of the discriminators; 0 trains without them.
        optimizer: Optimiser and schedule; the paper has betas (0.8, 0.99).
    """

    def __init__(
        self,
        codec: str | None = None,
        preset: str = "semanticodec_tiny",
        seed: int = 0,
        frames: int = 48,
        mel_weight: float = 45.0,
        stft_weight: float = 0.0,
        convergence_weight: float = 0.0,
        matching_weight: float = 2.0,
        discriminator_width: int = 32,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        model = start_codec(codec, preset, seed)
        if codec is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model.decoder.vocoder.reset_parameters()
        super().__init__(model, [model.decoder.vocoder], optimizer)
        window = model.config.decoder.window_frames
        if not 4 <= frames <= window:
            raise ValueError(f"frames must lie in 4..{window} (one segment), got {frames}")
        self.frames, self.mel_weight, self.stft_weight = frames, mel_weight, stft_weight
        self.convergence_weight, self.matching_weight = convergence_weight, matching_weight
        self.discriminator = WaveDiscriminator(discriminator_width) if discriminator_width else None

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of a batch of `waves`."""
        mel, wave = self._crop(batch)
        found = self.model.decoder.wave(mel)  # (B, 1, 160 frames)
        error = (self.log_mel(found[:, 0]) - self.log_mel(wave[:, 0])).abs().mean()
        logs: dict[str, Tensor | float] = {"mel_l1": error}
        loss = self.mel_weight * error
        if self.stft_weight:
            logs["stft"] = stft_distance(found[:, 0], wave[:, 0]).mean()
            loss = loss + self.stft_weight * logs["stft"]
        if self.convergence_weight:
            logs["convergence"] = spectral_convergence(found[:, 0], wave[:, 0]).mean()
            loss = loss + self.convergence_weight * logs["convergence"]
        if self.training and self.discriminator is not None:
            loss = loss + self._adversarial(wave, found, logs)
        return loss, logs

    def _adversarial(self, wave: Tensor, found: Tensor, logs: dict[str, Tensor | float]) -> Tensor:
        """The generator's terms plus the discriminators' own loss."""
        assert self.discriminator is not None
        own = discriminator_loss(self.discriminator(wave), self.discriminator(found.detach()))
        with frozen(self.discriminator):
            adversarial, matching = generator_losses(self.discriminator(wave), self.discriminator(found))
        logs |= {"discriminator": own, "adversarial": adversarial, "matching": matching}
        return own + adversarial + self.matching_weight * matching

    def _crop(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Mel frames (B, 1, frames, F) and their samples (B, 1, 160 frames), cut at one random place per batch."""
        mel, wave = self.mel(batch), self.waves(batch)
        last = mel.shape[2] - self.frames + 1
        first = int(torch.randint(last, (), generator=self.random(), device=self.device))
        samples = slice(first * HOP, (first + self.frames) * HOP)
        return mel[:, :, first : first + self.frames], wave[:, None, samples]
