"""Every size of SemantiCodec in frozen configs (Liu et al. 2024, arXiv:2405.00233).

The audio grid is fixed by the paper: 16 kHz, one mel frame per 10 ms, patches of 16 frames x 16 mel bins, segments of
1024 frames (10.24 s). Smaller models shorten the segment and the widths and leave the grid alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

SAMPLE_RATE = 16_000
"""Hz."""
HOP = 160
"""Samples per mel frame (10 ms), in both front ends."""
PATCH = 16
"""Mel frames, and mel bins, under one patch."""
STACK_OF_RATE = {100: 1, 50: 2, 25: 4}
"""Tokens per second -> patches per token (K)."""
VOCABULARIES = (4096, 8192, 16384, 32768)
"""Semantic vocabularies of the paper; one is drawn per training batch."""


@dataclass(frozen=True, kw_only=True)
class AudioMaeConfig:
    """The frozen ViT that turns a mel segment into patch features (paper section III-A)."""

    width: int = 768
    """Channels per patch."""
    depth: int = 12
    """Transformer blocks."""
    num_heads: int = 12
    """Attention heads; must divide `width`."""
    mlp_ratio: float = 4.0
    """Hidden width of the MLP relative to `width`."""
    averaged_blocks: int = 3
    """The feature is the mean over this many last blocks, each behind the final norm."""
    segment_frames: int = 1024
    """Mel frames per segment; a multiple of 32."""
    mel_bins: int = 128
    """Mel bins of the encoder front end; a multiple of 32."""

    def __post_init__(self) -> None:
        _require(self.width % self.num_heads == 0, f"num_heads must divide width, got {self.num_heads}, {self.width}")
        _require(self.width % 4 == 0, f"width must be a multiple of 4 (position code), got {self.width}")
        _require(
            1 <= self.averaged_blocks <= self.depth,
            f"averaged_blocks must lie in 1..depth={self.depth}, got {self.averaged_blocks}",
        )
        for name in ("segment_frames", "mel_bins"):
            value = getattr(self, name)
            _require(value > 0 and value % (2 * PATCH) == 0, f"{name} must be a multiple of {2 * PATCH}, got {value}")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along time and along frequency: (64, 8) in the paper."""
        return self.segment_frames // PATCH, self.mel_bins // PATCH


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """From a waveform to features: front end, AudioMAE, stacking, acoustic encoder."""

    audiomae: AudioMaeConfig = field(default_factory=AudioMaeConfig)
    """The frozen feature extractor."""
    token_rate: Literal[25, 50, 100] = 100
    """Tokens per second, semantic and acoustic ones counted together."""
    lstm_layers: int = 4
    """Layers of the bidirectional LSTM: 4, 3, 2 for 100, 50, 25 tokens per second."""
    lstm_hidden: int | None = None
    """Hidden width per direction; none takes twice the token width, as the paper."""

    def __post_init__(self) -> None:
        _require(self.token_rate in STACK_OF_RATE, f"token_rate must be 25, 50 or 100, got {self.token_rate}")
        _require(self.lstm_layers >= 1, f"lstm_layers must be at least 1, got {self.lstm_layers}")

    @property
    def stack(self) -> int:
        """Patches per token (K)."""
        return STACK_OF_RATE[self.token_rate]

    @property
    def token_width(self) -> int:
        """Channels of one stacked feature (D)."""
        return self.stack * self.audiomae.width

    @property
    def hidden(self) -> int:
        """LSTM width per direction."""
        return self.lstm_hidden or 2 * self.token_width

    @property
    def segment_tokens(self) -> int:
        """Token pairs per segment (n)."""
        time, frequency = self.audiomae.grid
        return time * frequency // self.stack

    @property
    def segment_samples(self) -> int:
        """Samples per segment: 163840 in the paper."""
        return self.audiomae.segment_frames * HOP

    @property
    def column_tokens(self) -> int:
        """Token pairs that share one stretch of time (frequency tiles): 8, 4, 4 for K = 1, 2, 4."""
        return self.audiomae.grid[1] // (1 if self.stack == 1 else 2)

    @property
    def column_samples(self) -> int:
        """Samples under one column of tokens: 2560, 2560, 5120 for K = 1, 2, 4."""
        return PATCH * HOP * (2 if self.stack == 4 else 1)


@dataclass(frozen=True, kw_only=True)
class QuantizerConfig:
    """Semantic codebooks (frozen k-means centres) and the acoustic codebook (EMA VQ)."""

    semantic_vocabs: tuple[int, ...] = (32768,)
    """Sizes of the semantic codebooks held, ascending; tokens come from the last unless another is chosen."""
    domains: tuple[str, ...] = ("general", "speech", "music")
    """Sound domains, clustered separately; rows of a codebook lie in this order. Deviation: order is not published."""
    domain_shares: tuple[int, ...] = (2, 1, 1)
    """Parts of a vocabulary per domain: one half, one quarter, one quarter."""
    acoustic_vocab: int = 8192
    """Entries of the acoustic codebook."""
    decay: float = 0.9
    """Moving-average factor of the acoustic codebook."""
    epsilon: float = 1e-5
    """Laplace smoothing of the code counts."""
    commitment: float = 1.0
    """Weight of the commitment loss."""
    revive_below: float = 0.0
    """Codes with a smaller running count are replaced by inputs while training; 0 never does, as the paper."""

    def __post_init__(self) -> None:
        _require(len(self.domains) == len(self.domain_shares) > 0, "domains and domain_shares must have equal length")
        _require(
            bool(self.semantic_vocabs) and tuple(sorted(set(self.semantic_vocabs))) == self.semantic_vocabs,
            f"semantic_vocabs must ascend without repeats, got {self.semantic_vocabs}",
        )
        for vocab in self.semantic_vocabs:
            _require(
                vocab > 0 and vocab % sum(self.domain_shares) == 0,
                f"a semantic vocabulary must divide into shares {self.domain_shares}, got {vocab}",
            )
        _require(self.acoustic_vocab >= 2, f"acoustic_vocab must be at least 2, got {self.acoustic_vocab}")
        _require(0 < self.decay < 1, f"decay must lie in (0, 1), got {self.decay}")

    def domain_ranges(self, vocab: int) -> dict[str, tuple[int, int]]:
        """Rows [start, end) of each domain in the codebook of this size.

        Example:
            >>> QuantizerConfig().domain_ranges(32768)
            {'general': (0, 16384), 'speech': (16384, 24576), 'music': (24576, 32768)}
        """
        ranges, start = {}, 0
        for name, share in zip(self.domains, self.domain_shares, strict=True):
            end = start + vocab * share // sum(self.domain_shares)
            ranges[name], start = (start, end), end
        return ranges


@dataclass(frozen=True, kw_only=True)
class VaeConfig:
    """The mel autoencoder whose latents are diffused (AudioLDM 2, 16 kHz, 64 mel bins)."""

    mel_bins: int = 64
    """Mel bins of the decoder front end."""
    width: int = 128
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 4)
    """Width per level; each level but the last halves time and frequency."""
    res_blocks: int = 2
    """Residual blocks per level of the encoder; the decoder has one more."""
    latent_channels: int = 8
    """Channels of the latent (z)."""
    norm_groups: int = 32
    """Groups of every group norm; must divide all widths."""

    @property
    def factor(self) -> int:
        """Reduction of time and of frequency: 4."""
        return 2 ** (len(self.multipliers) - 1)


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The T-UNet that predicts v (paper section III-C, AudioLDM 2 style)."""

    latent_channels: int = 8
    """Channels of the latent, in and out."""
    context_width: int = 1728
    """Channels of the condition: acoustic, semantic and position code (2D + 192)."""
    width: int = 64
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 3, 5)
    """Width per level; each level but the last halves the resolution."""
    res_blocks: int = 2
    """Residual blocks per level; the way up has one more."""
    attention_factors: tuple[int, ...] = (2, 4, 8)
    """Down-sampling factors with attention (never at full resolution)."""
    head_width: int = 32
    """Channels per attention head; must divide the widths with attention."""
    transformer_depth: int = 1
    """Blocks per spatial transformer."""
    token_grid: tuple[int, int] | None = None
    """Tokens of a window along time and frequency. If given, the queries of the cross-attention carry the position code
    of the token over their place. Deviation: the published network (none) finds places by itself, which takes long."""
    place_width: int = 32
    """Channels of that code; best the decoder's `position_width`."""
    norm_groups: int = 32
    """Groups of every group norm; must divide all widths."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """Noise schedule and the defaults of sampling."""

    schedule: Literal["cosine", "linear", "stored"] = "cosine"
    """cosine: zero terminal SNR (paper); linear: squares of a linspace, what the released configuration builds;
    stored: another table, which came with the weights."""
    spacing: Literal["leading", "trailing"] = "leading"
    """Sampling timesteps: leading never reaches the last one (released rule), trailing starts there and is right for a
    model trained with zero terminal SNR."""
    timesteps: int = 1000
    """Training steps of the chain."""
    linear_start: float = 0.0015
    """First beta of the linear schedule."""
    linear_end: float = 0.0195
    """Last beta of the linear schedule."""
    cosine_offset: float = 0.008
    """Offset s of the cosine schedule."""
    condition_dropout: float = 0.1
    """Share of training samples without condition. Deviation: not stated in the paper; decided per sample."""
    steps: int = 25
    """Sampling steps if the caller names none. Deviation: released code 50; little is gained after 25."""
    guidance: float = 2.0
    """Classifier-free guidance w in v_u + w (v_c - v_u); 1 is off."""
    eta: float = 1.0
    """Noise of DDIM: 1 is ancestral (the released default), 0 is deterministic."""

    def __post_init__(self) -> None:
        _require(self.schedule in ("cosine", "linear", "stored"), f"unknown schedule {self.schedule!r}")
        _require(self.spacing in ("leading", "trailing"), f"spacing must be leading or trailing, got {self.spacing!r}")
        _require(0 <= self.condition_dropout < 1, f"condition_dropout must lie in [0, 1), got {self.condition_dropout}")


@dataclass(frozen=True, kw_only=True)
class VocoderConfig:
    """HiFi-GAN: mel frames to samples."""

    mel_bins: int = 64
    """Channels of the input."""
    width: int = 1024
    """Channels behind the first convolution; halves at every up-sampling."""
    rates: tuple[int, ...] = (5, 4, 2, 2, 2)
    """Up-sampling factors; their product is the hop of 160 samples."""
    kernels: tuple[int, ...] = (16, 16, 8, 4, 4)
    """Kernel of each up-sampling."""
    res_kernels: tuple[int, ...] = (3, 7, 11)
    """Kernels of the parallel residual blocks."""
    dilations: tuple[int, ...] = (1, 3, 5)
    """Dilations inside a residual block."""


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """From condition features to a waveform: latent diffusion, mel VAE, vocoder, windows."""

    vae: VaeConfig = field(default_factory=VaeConfig)
    """Mel autoencoder."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    """Noise predictor."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Schedule and sampling defaults."""
    vocoder: VocoderConfig = field(default_factory=VocoderConfig)
    """Mel to waveform."""
    feature_width: int = 1536
    """Channels of [acoustic ; semantic] (2D)."""
    position_width: int = 192
    """Channels of the position code behind the features."""
    window_tokens: int = 512
    """Token positions per window (n)."""
    window_frames: int = 1024
    """Mel frames per window."""
    overlap_frames: int = 64
    """Mel frames shared by two windows, cross-faded: 0.64 s."""

    def __post_init__(self) -> None:
        _require(
            self.unet.context_width == self.feature_width + self.position_width,
            f"unet.context_width must be feature_width + position_width = {self.feature_width + self.position_width}, "
            f"got {self.unet.context_width}",
        )
        _require(self.vae.latent_channels == self.unet.latent_channels, "vae and unet differ in latent_channels")
        _require(self.vae.mel_bins == self.vocoder.mel_bins, "vae and vocoder differ in mel_bins")
        _require(
            0 < self.overlap_frames < self.window_frames
            and self.overlap_frames * self.window_tokens % self.window_frames == 0,
            f"overlap_frames={self.overlap_frames} is not a whole number of tokens of a window of {self.window_tokens}",
        )

    @property
    def overlap_tokens(self) -> int:
        """Token positions shared by two windows: 32, 16, 8 for K = 1, 2, 4."""
        return self.overlap_frames * self.window_tokens // self.window_frames

    @property
    def window_samples(self) -> int:
        """Samples of a trimmed window: 163840."""
        return self.window_frames * HOP

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, time and frequency of one latent: (8, 256, 16)."""
        factor = self.vae.factor
        return self.vae.latent_channels, self.window_frames // factor, self.vae.mel_bins // factor


@dataclass(frozen=True, kw_only=True)
class SemantiCodecConfig:
    """The whole codec."""

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Waveform to features."""
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    """Features to tokens."""
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    """Tokens to waveform."""

    def __post_init__(self) -> None:
        encoder, decoder = self.encoder, self.decoder
        pairs = {
            "decoder.feature_width": (decoder.feature_width, 2 * encoder.token_width),
            "decoder.window_tokens": (decoder.window_tokens, encoder.segment_tokens),
            "decoder.window_frames": (decoder.window_frames, encoder.audiomae.segment_frames),
        }
        for name, (found, wanted) in pairs.items():
            _require(found == wanted, f"{name} must be {wanted} for this encoder, got {found}")
        _require(
            decoder.overlap_tokens % encoder.column_tokens == 0,
            f"decoder.overlap_frames={decoder.overlap_frames} cuts a column of {encoder.column_tokens} tokens",
        )


def paper(token_rate: Literal[25, 50, 100] = 100, semantic_vocab: int = 32768) -> SemantiCodecConfig:
    """One of the twelve published models.

    Args:
        token_rate: 25, 50 or 100 tokens per second.
        semantic_vocab: 4096, 8192, 16384 or 32768.

    Raises:
        ValueError: another rate or vocabulary.
    """
    _require(token_rate in STACK_OF_RATE, f"token_rate must be 25, 50 or 100, got {token_rate}")
    _require(semantic_vocab in VOCABULARIES, f"semantic_vocab must be one of {VOCABULARIES}, got {semantic_vocab}")
    encoder = EncoderConfig(token_rate=token_rate, lstm_layers={100: 4, 50: 3, 25: 2}[token_rate])
    width = 2 * encoder.token_width
    return SemantiCodecConfig(
        encoder=encoder,
        quantizer=QuantizerConfig(semantic_vocabs=(semantic_vocab,)),
        decoder=DecoderConfig(
            unet=UNetConfig(context_width=width + 192), feature_width=width, window_tokens=encoder.segment_tokens
        ),
    )


def tiny() -> SemantiCodecConfig:
    """A model for a laptop: 1.28-s segments, 50 tokens per second, about two million parameters."""
    encoder = EncoderConfig(
        audiomae=AudioMaeConfig(width=64, depth=4, num_heads=4, averaged_blocks=2, segment_frames=128),
        token_rate=50,
        lstm_layers=1,
        lstm_hidden=64,
    )
    width, position = 2 * encoder.token_width, 32
    return SemantiCodecConfig(
        encoder=encoder,
        quantizer=QuantizerConfig(semantic_vocabs=(64, 128, 256), acoustic_vocab=256, revive_below=0.02),
        decoder=DecoderConfig(
            vae=VaeConfig(width=8, multipliers=(1, 2, 2), res_blocks=1, norm_groups=4),
            unet=UNetConfig(
                context_width=width + position,
                width=24,
                multipliers=(1, 1, 2),
                res_blocks=1,
                attention_factors=(2, 4),
                head_width=8,
                norm_groups=4,
                token_grid=(8, 4),
                place_width=position,
            ),
            diffusion=DiffusionConfig(spacing="trailing"),
            vocoder=VocoderConfig(width=64, rates=(8, 5, 4), kernels=(16, 15, 8), res_kernels=(3, 7), dilations=(1, 3)),
            feature_width=width,
            position_width=position,
            window_tokens=encoder.segment_tokens,
            window_frames=encoder.audiomae.segment_frames,
            overlap_frames=16,
        ),
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"SemantiCodec: {message}")
