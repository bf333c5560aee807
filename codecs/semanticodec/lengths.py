"""How many tokens a waveform of a given length has.

`exact` counts what is there: one column of tokens per started 160 ms (320 ms at 25 tokens per second), so that decoding
gives back at least the input. `official` repeats the released rule, whose float64 arithmetic adds a whole 160-ms patch
in the mean and a stray token at 7 % of all lengths; it exists to reproduce published token streams.
Source: section III-A of the paper for the grid; the rules themselves come from the released code.
"""

from __future__ import annotations

import math
from typing import Literal

from mm.codecs.semanticodec.config import SAMPLE_RATE, EncoderConfig

LengthMode = Literal["exact", "official"]
PATCH_S = 0.16


def token_count(samples: int, config: EncoderConfig, mode: LengthMode = "exact") -> int:
    """Token pairs of a waveform.

    Args:
        samples: Length at 16 kHz, at least 1.
        config: Grid of the encoder.
        mode: exact or official.

    Raises:
        ValueError: no samples, or an unknown mode.

    Example:
        >>> token_count(16_000, EncoderConfig()), token_count(16_000, EncoderConfig(), "official")
        (56, 57)
    """
    if samples < 1:
        raise ValueError("the waveform has no samples, so there is nothing to encode")
    if mode == "exact":
        return -(-samples // config.column_samples) * config.column_tokens
    if mode == "official":
        return min(
            math.ceil(official_target(samples, config)), official_segments(samples, config) * config.segment_tokens
        )
    raise ValueError(f"length_mode must be 'exact' or 'official', got {mode!r}")


def official_target(samples: int, config: EncoderConfig) -> float:
    """The released rule before rounding up, in the order of its float64 operations."""
    duration = samples / SAMPLE_RATE
    padded = duration + (PATCH_S - duration % PATCH_S)
    return config.audiomae.grid[1] * padded / PATCH_S / config.stack


def official_segments(samples: int, config: EncoderConfig) -> int:
    """Segments behind the released zero padding: an exact multiple gains a silent one."""
    return samples // config.segment_samples + 1


def segment_count(samples: int, config: EncoderConfig, mode: LengthMode = "exact") -> int:
    """Segments that hold the tokens of `token_count`."""
    return -(-token_count(samples, config, mode) // config.segment_tokens)


def samples_of(tokens: int, config: EncoderConfig) -> int:
    """Samples that a number of token pairs decodes to: 320 K per pair.

    Deviation: the released code truncates a float64 product and loses one sample at 22 of the counts 1..4000.
    """
    return tokens * config.column_samples // config.column_tokens
