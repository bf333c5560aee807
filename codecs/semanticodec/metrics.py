"""How near a decoded sound is to its source: log-mel and log-spectral distance, retrieval, and a hook for word errors.

Dims: B sounds, S samples, T frames, F bins.
Source: distances over several window sizes as in DAC (Kumar et al., arXiv:2306.06546), which the paper reports; the
paper's figures come from recordings, so only models measured on the same sounds compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torchaudio
from torch import Tensor

from mm.codecs.semanticodec.config import SAMPLE_RATE

MEL_WINDOWS = (32, 64, 128, 256, 512, 1024, 2048)
MEL_BINS = (5, 10, 20, 40, 80, 160, 320)
STFT_WINDOWS = (512, 2048)
FLOOR = 1e-5


def mel_distance(found: Tensor, expected: Tensor) -> Tensor:
    """Mean difference of log10 mel magnitudes, summed over seven window sizes.

    Args:
        found: Decoded waveforms, (B, S) at 16 kHz.
        expected: Their sources, (B, S).

    Returns:
        (B,) float32; 0 for equal sounds.

    Raises:
        ValueError: different shapes.
    """
    _check(found, expected)
    terms = []
    for window, bins in zip(MEL_WINDOWS, MEL_BINS, strict=True):
        filters = _filters(window, bins).to(found.device)
        ours, theirs = (_magnitude(wave, window) @ filters for wave in (found, expected))
        terms.append(_log_difference(ours, theirs))
    return torch.stack(terms).sum(0)


def stft_distance(found: Tensor, expected: Tensor) -> Tensor:
    """Mean difference of magnitudes plus that of their log10, summed over two window sizes, (B,)."""
    _check(found, expected)
    terms = []
    for window in STFT_WINDOWS:
        ours, theirs = _magnitude(found, window), _magnitude(expected, window)
        terms.append((ours - theirs).abs().mean((1, 2)) + _log_difference(ours, theirs))
    return torch.stack(terms).sum(0)


def spectral_convergence(found: Tensor, expected: Tensor) -> Tensor:
    """|| |S'| - |S| || / || S ||, averaged over two window sizes, (B,): 1e-5 for equal sounds, 1 for silence.

    Source: Arik et al. 2019 (arXiv:1808.06719), section 3.
    """
    _check(found, expected)
    terms = []
    for window in STFT_WINDOWS:
        ours, theirs = _magnitude(found, window), _magnitude(expected, window)
        error, energy = (part.square().sum((1, 2)) for part in (ours - theirs, theirs))
        terms.append((error / energy.clamp(min=FLOOR)).clamp(min=FLOOR**2).sqrt())
    return torch.stack(terms).mean(0)


def retrieval_accuracy(found: Tensor, expected: Tensor, distance: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Share of decoded sounds that are nearer to their own source than to every other, 0 to 1.

    Args:
        found: Decoded sounds or features, (B, ...).
        expected: Their sources in the same order, (B, ...).
        distance: (B, ...), (B, ...) -> (B,).

    Raises:
        ValueError: fewer than two sounds.
    """
    if len(found) < 2:
        raise ValueError(f"retrieval needs at least two sounds, got {len(found)}")
    hits = [int(distance(row.expand_as(expected), expected).argmin()) == index for index, row in enumerate(found)]
    return sum(hits) / len(hits)


def word_error_rate(
    transcribe: Callable[[Tensor, int], str], waves: Sequence[Tensor], references: Sequence[str]
) -> float:
    """Word errors of decoded speech per reference word; a recogniser of your choice does the listening.

    Args:
        transcribe: (waveform (S,), sample rate in Hz) -> text. The paper uses whisper-large-v3.
        waves: Decoded speech at 16 kHz.
        references: What was said; case and punctuation do not count.

    Raises:
        ValueError: no words, or counts that differ.
    """
    if len(waves) != len(references):
        raise ValueError(f"{len(waves)} sounds and {len(references)} references; give one text per sound")
    words = [_words(text) for text in references]
    if not any(words):
        raise ValueError("the references hold no words")
    errors = [
        torchaudio.functional.edit_distance(reference, _words(transcribe(wave, SAMPLE_RATE)))
        for wave, reference in zip(waves, words, strict=True)
    ]
    return sum(errors) / sum(map(len, words))


def _words(text: str) -> list[str]:
    kept = "".join(char if char.isalnum() or char == "'" else " " for char in text.lower())
    return kept.split()


def _magnitude(wave: Tensor, window: int) -> Tensor:
    """(B, S) -> (B, T, window / 2 + 1), hop a quarter window."""
    shape = torch.hann_window(window, device=wave.device)
    spectrum = torch.stft(wave.float(), window, window // 4, window=shape, return_complex=True)
    return spectrum.abs().transpose(1, 2)


def _log_difference(ours: Tensor, theirs: Tensor) -> Tensor:
    return (ours.clamp(min=FLOOR).log10() - theirs.clamp(min=FLOOR).log10()).abs().mean((1, 2))


@cache
def _filters(window: int, bins: int) -> Tensor:
    """Slaney mel filters, (window / 2 + 1, bins); rows of narrow windows may be empty, as in the published metric."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # empty filters are expected for the narrow windows
        return torchaudio.functional.melscale_fbanks(
            window // 2 + 1, 0.0, SAMPLE_RATE / 2, bins, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )


def _check(found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape or found.dim() != 2:
        raise ValueError(f"both need one shape (B, S), got {tuple(found.shape)} and {tuple(expected.shape)}")
