"""Training of the mel autoencoder: reconstruction, a prior on the latents, and later a discriminator.

    L = |mel - decoded| + kl_weight KL + w (-D(decoded))        w makes the last term a share of the first's gradient

Source: AudioLDM 2 (arXiv:2308.05734). Deviation: no perceptual term, because its network would have to be downloaded.
Discriminator and autoencoder take their steps together, each from its own loss, in one optimiser.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mm.codecs.semanticodec.patch_discriminator import PatchDiscriminator, balanced_weight, hinge_loss
from mm.codecs.semanticodec.stage import CodecStage, frozen, start_codec
from mm.training.module import OptimizerConfig


class VaeModule(CodecStage):
    """Train the autoencoder of a codec.

    Args:
        codec: Weights to start from, see `mm.codecs.semanticodec.stage.start_codec`.
        preset: Sizes of a fresh codec.
        seed: Of its weights.
        kl_weight: Weight of the divergence, which is a mean over latents.
        adversarial_share: Gradient of the adversarial term relative to the reconstruction's; 0 trains without.
        adversarial_from: Optimiser step at which it sets in.
        discriminator_width: Channels of the discriminator.
        optimizer: Optimiser and schedule.
    """

    def __init__(
        self,
        codec: str | None = None,
        preset: str = "semanticodec_tiny",
        seed: int = 0,
        kl_weight: float = 1e-3,
        adversarial_share: float = 0.0,
        adversarial_from: int = 0,
        discriminator_width: int = 64,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        model = start_codec(codec, preset, seed)
        super().__init__(model, [model.decoder.vae], optimizer)
        if kl_weight < 0 or adversarial_share < 0:
            raise ValueError(f"weights must not be negative, got {kl_weight} and {adversarial_share}")
        self.kl_weight, self.share, self.adversarial_from = kl_weight, adversarial_share, adversarial_from
        self.discriminator = PatchDiscriminator(discriminator_width) if adversarial_share else None

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of a batch of `waves`."""
        vae, mel = self.model.decoder.vae, self.mel(batch)
        posterior = vae.encode(mel)
        decoded = vae.decode(posterior.sample(self.random()))
        error, divergence = (decoded - mel).abs().mean(), posterior.kl().mean()
        logs: dict[str, Tensor | float] = {"mel_l1": error, "kl": divergence}
        loss = error + self.kl_weight * divergence
        if self.training and self.discriminator is not None and self.global_step >= self.adversarial_from:
            loss = loss + self._adversarial(error, mel, decoded, logs)
        return loss, logs

    def _adversarial(self, error: Tensor, mel: Tensor, decoded: Tensor, logs: dict[str, Tensor | float]) -> Tensor:
        """The autoencoder's weighted term plus the discriminator's own loss."""
        assert self.discriminator is not None
        with frozen(self.discriminator):
            fooled = -self.discriminator(decoded).mean()
        weight = balanced_weight(error, fooled, self.model.decoder.vae.decoder.conv_out.weight, self.share)
        own = hinge_loss(self.discriminator(mel), self.discriminator(decoded.detach()))
        logs |= {"adversarial": fooled, "adversarial_weight": weight, "discriminator": own}
        return weight * fooled + own
