"""Frames to discrete codes that carry what a frozen teacher sees, not texture.

    frame -> ViT -> linear, tanh, linear -> nearest code -> small ViT -> teacher features

Only what the teacher's features need passes the codebook, so a code names a meaning. Frames are tokenised one by one.
Dims: B clips or pictures, T frames, S side in pixels, h = w codes along a side, N = h * w, K codes, D code width,
C target width.
Source: VQ-KD (BEiT v2, arXiv:2208.06366); its role in E-ViLM (arXiv:2311.17267, abstract): labels of masked regions.
Deviation: E-ViLM publishes no size or teacher; the published VQ-KD sizes stand in for them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mm.checkpoint import Pretrained
from mm.codecs.semantic_vq.config import SemanticVQConfig
from mm.codecs.semantic_vq.quantizer import CosineQuantizer
from mm.codecs.semantic_vq.vit import PatchTransformer, TaskLayer, init_linear, spread
from mm.vision import ImagePreprocessing


class Tokenized(NamedTuple):
    """What the tokenizer makes of pictures."""

    features: Tensor
    """Rebuilt teacher features, (..., N, C)."""
    codes: Tensor
    """Codes in raster order, (..., h, w) int64."""
    loss: Tensor
    """Weighted commitment loss, scalar float32."""


class Usage(NamedTuple):
    """How much of the codebook is in use."""

    used: float
    """Share of the codes that occur, 0..1."""
    perplexity: float
    """exp of the entropy of the code frequencies: 1 (one code) .. K (all equal)."""


class SemanticVQTokenizer(Pretrained, nn.Module):
    """Encoder, codebook and feature decoder.

    Args:
        config: Sizes.
        seed: Of the random weights.

    Example:
        >>> from mm.codecs.semantic_vq import tiny
        >>> tok = SemanticVQTokenizer(tiny()).eval()
        >>> codes = tok.encode(torch.rand(2, 4, 3, 64, 64))
        >>> codes.shape, tok.decode_features(codes).shape
        (torch.Size([2, 4, 8, 8]), torch.Size([2, 4, 64, 32]))
    """

    config_class = SemanticVQConfig
    target_mean: Tensor
    """Mean of the teacher's features, (C) float32, added to what the decoder says; 0 unless training centred them."""

    def __init__(self, config: SemanticVQConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        side, code = config.side, config.quantizer.width
        self.encoder = PatchTransformer(config.encoder, channels=3, patch_size=config.patch_size, side=side)
        self.encode_task_layer = TaskLayer(config.encoder.width, code, exact=True)
        self.quantizer = CosineQuantizer(config.quantizer)
        self.decoder = PatchTransformer(config.decoder, channels=code, patch_size=1, side=side)
        self.decode_task_layer = TaskLayer(config.decoder.width, config.target_width)
        self.register_buffer("target_mean", torch.zeros(config.target_width))
        generator = torch.Generator().manual_seed(seed)
        for transformer, head in ((self.encoder, self.encode_task_layer), (self.decoder, self.decode_task_layer)):
            transformer.init_weights(generator)
            init_linear(head, generator, spread(transformer.cls_token.shape[-1]))

    def forward(self, frames: Tensor) -> Tokenized:
        """Tokenise and rebuild; in training mode the codebook learns.

        Args:
            frames: RGB in 0..1, (..., 3, S, S), any float dtype.

        Raises:
            ValueError: another frame size than `config.image_size`.
        """
        lead = frames.shape[:-3]
        latents = self.latents(frames)  # (M, N, D)
        with torch.autocast(frames.device.type, enabled=False):
            found = self.quantizer(latents)
        features = self._decode(found.quantized)
        side = self.config.side
        return Tokenized(
            features.reshape(*lead, *features.shape[1:]), found.codes.reshape(*lead, side, side), found.loss
        )

    def unquantised(self, frames: Tensor) -> Tensor:
        """Features (..., N, C) rebuilt from unit latents without a codebook: how training warms up."""
        vectors = F.normalize(self.latents(frames), dim=-1)
        features = self._decode(vectors)
        return features.reshape(*frames.shape[:-3], *features.shape[1:])

    def latents(self, frames: Tensor) -> Tensor:
        """Vectors in front of the codebook, float32, (M, N, D) with M all leading dimensions of `frames` together."""
        self._check(frames)
        dtype = self.encoder.cls_token.dtype
        pixels = frames.reshape(-1, *frames.shape[-3:]).to(dtype) * 2 - 1
        return self.encode_task_layer(self.encoder(pixels))

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Codes of frames; changes nothing, in training mode either.

        Args:
            frames: RGB, (..., 3, S, S): uint8 in 0..255 or floats in 0..1. Prepare other sizes with
                `ImageProcessor(tok.image_preprocessing)`.

        Returns:
            (..., h, w) int64.

        Raises:
            ValueError: another frame size, or floats outside 0..1 (normalised frames give other codes without notice).
        """
        if frames.dtype == torch.uint8:
            frames = frames.float() / 255
        elif frames.numel() and not bool(((frames >= -1e-3) & (frames <= 1 + 1e-3)).all()):
            raise ValueError(
                f"frames must lie in 0..1, got {float(frames.min()):.3g}..{float(frames.max()):.3g}; pass RGB without "
                "mean and standard deviation of another model, or uint8"
            )
        side = self.config.side
        self._check(frames)
        if not frames.numel():
            return torch.zeros(*frames.shape[:-3], side, side, dtype=torch.int64, device=frames.device)
        return self.quantizer.encode(self.latents(frames)).reshape(*frames.shape[:-3], side, side)

    def decode_features(self, codes: Tensor) -> Tensor:
        """Teacher features that the codes stand for: (..., h, w) integers -> (..., N, C).

        Raises:
            ValueError: another map size, or codes outside the codebook.
        """
        side = self.config.side
        if codes.ndim < 2 or tuple(codes.shape[-2:]) != (side, side):
            raise ValueError(f"codes must be (..., {side}, {side}) for this tokenizer, got {tuple(codes.shape)}")
        vectors = self.quantizer.lookup(rearrange(codes.reshape(-1, side, side), "m i j -> m (i j)"))
        features = self._decode(vectors)
        return features.reshape(*codes.shape[:-2], *features.shape[1:])

    @property
    def usage(self) -> Usage:
        """Running usage of the codebook over the last hundred or so training steps (a decaying count).

        A code counts as used if at least one vector in ten thousand took it. Evaluation does not count; see `usage_of`.
        """
        counts = self.quantizer.cluster_size.float()
        return _usage(counts, counts >= 1e-4 * counts.sum().clamp(min=1e-12))

    def usage_of(self, codes: Tensor) -> Usage:
        """Usage in given codes, any shape."""
        counts = torch.bincount(codes.reshape(-1), minlength=self.config.quantizer.size).float()
        return _usage(counts, counts > 0)

    @property
    def image_preprocessing(self) -> ImagePreprocessing:
        """Short side to S, centre crop, RGB in 0..1."""
        return ImagePreprocessing(size=self.config.image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize="crop")

    def preprocessing(self) -> dict[str, Any]:
        return self.image_preprocessing.to_dict()

    def _decode(self, vectors: Tensor) -> Tensor:
        """Unit codewords (M, N, D) -> features (M, N, C)."""
        grid = rearrange(vectors, "m (i j) d -> m d i j", i=self.config.side).to(self.decoder.cls_token.dtype)
        rebuilt = self.decode_task_layer(self.decoder(grid))
        return rebuilt + self.target_mean.to(rebuilt.dtype)

    def _check(self, frames: Tensor) -> None:
        size = self.config.image_size
        if frames.ndim < 4 or tuple(frames.shape[-3:]) != (3, size, size):
            raise ValueError(
                f"frames must be (..., 3, {size}, {size}) with at least one leading dimension, got "
                f"{tuple(frames.shape)}; prepare them with ImageProcessor(tok.image_preprocessing)"
            )


def _usage(counts: Tensor, used: Tensor) -> Usage:
    share = counts / counts.sum().clamp(min=1e-12)
    perplexity = float(torch.special.entr(share).sum().exp())
    return Usage(float((used & (counts > 0)).float().mean()), perplexity)
