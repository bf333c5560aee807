"""The joint stage: acoustic encoder, acoustic codebook and diffusion network, on frozen features, autoencoder, vocoder.

    L = |v - v_hat|^2 + commitment,   v = sqrt(abar) eps - sqrt(1 - abar) z0,   t uniform

One of the semantic codebooks is drawn per batch, so that one model speaks all vocabularies; the condition of some
samples is dropped, so that guidance has an unconditional branch.
Dims: B batch, N tokens, C feature channels, Z T F latent.
Source: SemantiCodec (arXiv:2405.00233), section III-D. Deviation: both terms are means over elements, weight 1 each;
the condition is dropped per sample, with probability 0.1 (the paper states neither). An average of the weights is the
run's `--ema`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mm.codecs.quantize import perplexity
from mm.codecs.semanticodec.encoder import Encoded
from mm.codecs.semanticodec.stage import CodecStage, start_codec
from mm.codecs.semanticodec.vae import Posterior
from mm.training.module import OptimizerConfig


class JointModule(CodecStage):
    """Train encoder and diffusion network of a codec together.

    Args:
        codec: Weights to start from, with trained features, codebooks, autoencoder and vocoder.
        preset: Sizes of a fresh codec.
        seed: Of its weights.
        random_vocabulary: Draw a semantic codebook per batch; False trains on the largest alone.
        semantic_only_share: Share of samples whose acoustic features are zero, so that semantic tokens decode alone.
        unquantized_share: Share of samples with features in front of the codebooks (a control; the paper has none).
        optimizer: Optimiser and schedule.
    """

    def __init__(
        self,
        codec: str | None = None,
        preset: str = "semanticodec_tiny",
        seed: int = 0,
        random_vocabulary: bool = True,
        semantic_only_share: float = 0.0,
        unquantized_share: float = 0.0,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        model = start_codec(codec, preset, seed)
        super().__init__(model, [model.encoder.acoustic, model.decoder.unet], optimizer)
        self.random_vocabulary = random_vocabulary
        self.semantic_only_share, self.unquantized_share = semantic_only_share, unquantized_share

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """The first batch of a fresh codec sets the scale of its latents: one over their spread."""
        scale = self.model.decoder.scale_factor
        if self.global_step == 0 and batch_idx == 0 and float(scale) == 1.0:
            spread = self._posterior_sample(batch).std()
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                torch.distributed.all_reduce(spread)
                spread = spread / torch.distributed.get_world_size()
            scale.copy_(1 / spread)

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of a batch of `waves`, or of what the frozen parts made of them; evaluation adds a control.

        The control hands every condition to the wrong sample.
        """
        latents = self._posterior_sample(batch) * self.model.decoder.scale_factor
        encoded = self._encoded(batch)
        features = self._dropped(self._varied(encoded))
        generator = self.random()
        timesteps = torch.randint(
            self.model.decoder.schedule.num_timesteps, (len(latents),), generator=generator, device=self.device
        )
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        error = self._error(features, latents, noise, timesteps)
        used = perplexity(encoded.tokens[..., 1][encoded.keep], self.model.acoustic_vocab)
        logs: dict[str, Tensor | float] = {"v_mse": error, "commitment": encoded.loss, "acoustic_perplexity": used}
        if not self.training:
            logs["v_mse_shuffled"] = self._error(features.roll(1, 0), latents, noise, timesteps)
        return error + encoded.loss, logs

    def _error(self, features: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        decoder = self.model.decoder
        context = decoder.unet.read_context(decoder.condition(features))
        found = decoder.unet(decoder.schedule.noisy(latents, noise, timesteps), timesteps, context)
        return (found - decoder.schedule.velocity(latents, noise, timesteps)).square().mean()

    def _vocabulary(self) -> int:
        choices = self.model.semantic_vocabs
        if not (self.training and self.random_vocabulary):
            return choices[-1]
        return choices[int(torch.randint(len(choices), ()))]

    def _encoded(self, batch: dict[str, Any]) -> Encoded:
        """From `waves`, or from `features` and `keep` that an earlier pass of the frozen extractor has left."""
        encoder, vocab = self.model.encoder, self._vocabulary()
        if "features" in batch:
            return encoder.quantize(batch["features"], batch["keep"], vocab=vocab)
        return encoder(self.model.bank(batch["waves"]), vocab=vocab)  # type: ignore[no-any-return]

    def _varied(self, encoded: Encoded) -> Tensor:
        """Some samples without acoustic features, some with unquantised ones, while training."""
        features = encoded.condition
        if not self.training:
            return features
        draw = torch.rand(len(features), device=features.device)[:, None, None]
        acoustic = torch.arange(features.shape[-1], device=features.device) < features.shape[-1] // 2
        features = torch.where((draw < self.semantic_only_share) & acoustic, 0.0, features)
        return torch.where(draw > 1 - self.unquantized_share, encoded.unquantized, features)

    def _dropped(self, features: Tensor) -> Tensor:
        """Some samples without condition: zeros as features, while training."""
        share = self.model.config.decoder.diffusion.condition_dropout if self.training else 0.0
        keep = torch.rand(len(features), device=features.device) >= share
        return torch.where(keep[:, None, None], features, torch.zeros_like(features))

    @torch.no_grad()
    def _posterior_sample(self, batch: dict[str, Any]) -> Tensor:
        """Unscaled latents (B, Z, T / 4, F / 4)."""
        if "moments" in batch:
            mean, log_variance = batch["moments"].chunk(2, dim=1)
            return Posterior(mean=mean, log_variance=log_variance).sample(self.random())
        return self.model.decoder.vae.encode(self.mel(batch)).sample(self.random())
