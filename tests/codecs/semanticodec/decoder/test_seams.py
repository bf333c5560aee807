"""No clicks at window joins: a pure tone of ten minutes, cut into windows, decoded by parts that know the tone.

The click detector predicts every sample of the tone from the two before it: a step, a kink or a shift in
time shows there first.
"""

from __future__ import annotations

import math

import torch

from mm.codecs.semanticodec.windows import cross_fade, window_ranges

RATE, TONE_HZ = 16_000, 440.0
WINDOW, OVERLAP, SAMPLES_PER_TOKEN = 256, 16, 640
"""Published sizes at 50 tokens per second: windows of 10.24 s that share 0.64 s."""


def tone(start: int, samples: int) -> torch.Tensor:
    return torch.sin(2 * math.pi * TONE_HZ / RATE * torch.arange(start, start + samples, dtype=torch.float64))


def windows(seconds: int, extra: int = 0):
    """What a perfect decoder gives per window, plus `extra` samples behind its end."""
    tokens = seconds * RATE // SAMPLES_PER_TOKEN
    for start, _ in window_ranges(tokens, WINDOW, OVERLAP):
        yield tone(start * SAMPLES_PER_TOKEN, WINDOW * SAMPLES_PER_TOKEN + extra)


def clicks_db(pieces) -> float:
    """Largest surprise over the whole signal in dB below the tone: s[t] - 2 cos(w) s[t-1] + s[t-2] is 0 for a tone."""
    turn, tail, worst = 2 * math.cos(2 * math.pi * TONE_HZ / RATE), torch.zeros(0, dtype=torch.float64), 0.0
    for piece in pieces:
        signal = torch.cat([tail, piece])
        surprise = signal[2:] - turn * signal[1:-1] + signal[:-2]
        worst, tail = max(worst, float(surprise.abs().max())), signal[-2:]
    return 20 * math.log10(max(worst, 1e-12))


def test_ten_minutes_have_no_seams():
    seconds = 600
    pieces = list(cross_fade(windows(seconds), OVERLAP * SAMPLES_PER_TOKEN))
    loudest = clicks_db(pieces)
    print(f"largest surprise {loudest:.0f} dB below the tone")
    assert loudest < -60
    joined = torch.cat(pieces)
    kept = seconds * RATE
    torch.testing.assert_close(joined[:kept], tone(0, kept))  # no drift: the last minute is where it belongs


def test_the_detector_hears_hard_cuts_and_the_drift_of_untrimmed_windows_shifts_the_end():
    hop = (WINDOW - OVERLAP) * SAMPLES_PER_TOKEN
    cut = (tone(137 * index + index * hop, hop) for index in range(3))
    assert clicks_db(cut) > -30
    joined = torch.cat(list(cross_fade(windows(60, extra=32), OVERLAP * SAMPLES_PER_TOKEN)))
    late = joined[50 * RATE : 51 * RATE]
    assert (late - tone(50 * RATE, RATE)).abs().max() > 0.5
