"""Made sounds of three domains: speech-like syllables, notes of a scale, and everything else (noise, hits, sweeps).

A sound is a pure function of one integer. It needs no recordings and still has what a codec must carry: pitch, vowels,
onsets, noise colour, silence and level. It says nothing about how well real recordings are coded.
Dims: S samples, H partials, E events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mm.codecs.semanticodec.config import SAMPLE_RATE
from mm.data.split import generator

DOMAINS = ("general", "speech", "music")
PITCH_CLASSES = 12
VOWELS = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240], [530, 1840, 2480], [570, 840, 2410]])
"""Formant frequencies of five vowels, Hz (Peterson and Barney 1952)."""
FORMANT_WIDTH_HZ = 130.0
PEAK = 0.5
"""Largest magnitude of the loudest sounds."""


@dataclass(frozen=True, kw_only=True)
class Sound:
    """One made sound."""

    wave: np.ndarray
    """(S,) float32 at 16 kHz, within [-0.5, 0.5]."""
    domain: str
    """Of `DOMAINS`."""
    label: int
    """Pitch class 0-11 of the first note (music), of the voice (speech), or of the noise band's centre (general)."""


def make_sound(seed: int, samples: int, domain: str | None = None) -> Sound:
    """The sound of a seed.

    Args:
        seed: Decides everything; the split is part of it (`mm.data.split`).
        samples: Length (S).
        domain: One of `DOMAINS`; none takes them in turn.

    Raises:
        ValueError: an unknown domain.
    """
    domain = DOMAINS[seed % len(DOMAINS)] if domain is None else domain
    if domain not in DOMAINS:
        raise ValueError(f"domain must be one of {', '.join(DOMAINS)}, got {domain!r}")
    rng = generator(seed, f"sound {domain}")
    wave, label = {"general": _general, "speech": _speech, "music": _music}[domain](rng, samples)
    wave = wave / max(float(np.abs(wave).max()), 1e-6) * PEAK * 10 ** rng.uniform(-0.5, 0)
    wave = wave + rng.normal(0, 10 ** rng.uniform(-5, -3.5), samples)
    return Sound(wave=wave.astype(np.float32), domain=domain, label=label)


def sounds_batch(seeds: Sequence[int], samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Waves (B, S) float32, domains (B,) int64 as places in `DOMAINS`, labels (B,) int64."""
    sounds = [make_sound(seed, samples) for seed in seeds]
    domains = np.array([DOMAINS.index(sound.domain) for sound in sounds])
    return np.stack([sound.wave for sound in sounds]), domains, np.array([sound.label for sound in sounds])


def _partials(frequency: np.ndarray, amplitudes: np.ndarray) -> np.ndarray:
    """Harmonics of a gliding pitch (S,) in Hz; amplitudes (H,) or (H, S). Partials beyond 7.6 kHz stay silent."""
    step = np.exp(1j * (2 * np.pi / SAMPLE_RATE) * np.cumsum(frequency))
    partial, wave = step.copy(), np.zeros_like(frequency)
    for number, amplitude in enumerate(amplitudes, start=1):
        wave += np.where(number * frequency < 7600, amplitude, 0.0) * partial.imag
        partial *= step  # powers of one rotation: a product per partial in place of a sine
    return wave


def _pitch_class(frequency: float) -> int:
    """Nearest of the twelve classes, 0 = C.

    Example:
        >>> _pitch_class(440.0), _pitch_class(261.6)
        (9, 0)
    """
    return round(69 + 12 * np.log2(frequency / 440)) % PITCH_CLASSES


def _decay(samples: int, attack_s: float, half_life_s: float) -> np.ndarray:
    """Linear attack, then halving every `half_life_s`."""
    time = np.arange(samples) / SAMPLE_RATE
    return np.minimum(time / attack_s, 1) * 0.5 ** (time / half_life_s)


def _events(rng: np.random.Generator, samples: int, shortest_s: float, longest_s: float) -> list[tuple[int, int]]:
    """Consecutive stretches [start, end) that fill the sound."""
    events, start = [], int(rng.uniform(0, 0.1) * SAMPLE_RATE)
    while start < samples:
        end = min(start + int(rng.uniform(shortest_s, longest_s) * SAMPLE_RATE), samples)
        events.append((start, end))
        start = end
    return events


def _music(rng: np.random.Generator, samples: int) -> tuple[np.ndarray, int]:
    """Notes of a major scale with one timbre, at times two voices."""
    root = rng.integers(48, 72)
    timbre = rng.uniform(0.2, 1, 10) * rng.uniform(0.45, 0.85) ** np.arange(10)
    wave, first = np.zeros(samples), None
    for voice in range(rng.integers(1, 3)):
        for start, end in _events(rng, samples, 0.12, 0.5):
            note = root + rng.choice([0, 2, 4, 5, 7, 9, 11, 12]) - 12 * voice
            frequency = 440 * 2 ** ((note - 69) / 12)
            first = int(note) % PITCH_CLASSES if first is None else first
            tone = _partials(np.full(end - start, frequency), timbre)
            wave[start:end] += tone * _decay(end - start, 0.008, rng.uniform(0.08, 0.4)) * _release(end - start)
    return wave, int(first or 0)


def _release(samples: int, release_s: float = 0.01) -> np.ndarray:
    """Ones that fall to zero at the end."""
    return np.minimum(np.arange(samples, 0, -1) / (release_s * SAMPLE_RATE), 1)


def _speech(rng: np.random.Generator, samples: int) -> tuple[np.ndarray, int]:
    """Syllables: hiss, then a voiced vowel whose pitch falls; now and then a pause."""
    base, tract = rng.uniform(90, 240), rng.uniform(0.9, 1.2)
    wave = np.zeros(samples)
    for start, end in _events(rng, samples, 0.14, 0.32):
        length = end - start
        if rng.random() < 0.15 or length < 2:  # a pause, or cut off by the end of the sound
            continue
        onset = min(int(rng.uniform(0.02, 0.07) * SAMPLE_RATE), length // 2)
        hiss = _coloured(rng, onset, rng.uniform(2500, 6000), 1500) * np.hanning(onset + 2)[1:-1]
        wave[start : start + onset] += rng.uniform(0.05, 0.3) * hiss
        wave[start + onset : end] += _vowel(rng, length - onset, base, tract)
    return wave, _pitch_class(base)


def _vowel(rng: np.random.Generator, samples: int, base: float, tract: float) -> np.ndarray:
    glide = np.linspace(rng.uniform(1.0, 1.15), rng.uniform(0.85, 1.0), samples)
    frequency = base * glide
    formants = VOWELS[rng.integers(len(VOWELS))] * tract
    partials = base * np.arange(1, 1 + int(4500 / base))
    gains = (1 / (1 + ((partials[:, None] - formants) / FORMANT_WIDTH_HZ) ** 2)).sum(1) * partials**-0.3
    return _partials(frequency, gains) * np.hanning(samples + 2)[1:-1] ** 0.5


def _general(rng: np.random.Generator, samples: int) -> tuple[np.ndarray, int]:
    """Coloured noise that swells, hits with ringing, or a sweep."""
    centre = float(np.exp(rng.uniform(np.log(200), np.log(5000))))
    kind = rng.integers(3)
    if kind == 0:
        time = np.arange(samples) / SAMPLE_RATE
        swell = 1 + rng.uniform(0, 1) * np.sin(2 * np.pi * rng.uniform(0.5, 8) * time + rng.uniform(0, 6))
        wave = _coloured(rng, samples, centre, centre * rng.uniform(0.1, 0.6)) * swell
    elif kind == 1:
        wave = np.zeros(samples)
        for start, end in _events(rng, samples, 0.1, 0.5):
            ring = np.sin(2 * np.pi * centre * np.arange(end - start) / SAMPLE_RATE)
            hit = ring + rng.normal(0, 0.5, end - start)
            wave[start:end] += hit * _decay(end - start, 0.002, rng.uniform(0.01, 0.06)) * _release(end - start)
    else:
        sweep = centre * 2 ** np.linspace(0, rng.uniform(-1.5, 1.5), samples)
        wave = _partials(sweep, 0.5 ** np.arange(4))
    return wave, _pitch_class(centre)


def _coloured(rng: np.random.Generator, samples: int, centre: float, width: float) -> np.ndarray:
    """Noise in a Gaussian band, about unit variance."""
    spectrum = np.fft.rfft(rng.normal(size=samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    wave = np.fft.irfft(spectrum * np.exp(-0.5 * ((frequency - centre) / width) ** 2), samples)
    return wave / max(float(wave.std()), 1e-9)
