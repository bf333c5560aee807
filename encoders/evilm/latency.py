"""Time of E-ViLM against VIOLETv2's layout on the same clips and texts, and of search over 1,000 clips.

On a GPU both have their full size. On a CPU both are a quarter as wide with the same number of blocks and layers, so
that widths, depths and token counts keep their proportions; `flop_ratio` says what the operations of that size promise.
Dims: T frames, X words, N clips.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from mm.encoders.evilm.config import EViLMConfig, Swin3DConfig, evilm_config
from mm.encoders.evilm.model import EViLM, TextFeatures, VideoFeatures
from mm.encoders.evilm.search import RERANK_K, cosines, exhaustive_scores, reranked_scores
from mm.metrics.flops import count_flops
from mm.metrics.latency import measure
from mm.metrics.memory import measure_memory

OURS = ("evilm_30m", "evilm_slim")
ANCESTOR = "violetv2"
FRAMES, WORDS, SIDE = 4, 32, 224
CLIPS = 1000
NARROWER = 4
"""How much narrower both models are on a CPU."""
GPU_BATCH = 8


def narrow(config: EViLMConfig, times: int = NARROWER) -> EViLMConfig:
    """The same layout with fewer channels; heads keep their number where their channels allow it."""
    trunk = config.video
    embed = trunk.embed_dim // times
    heads = [max(1, count // times) for count in trunk.num_heads]
    video: Swin3DConfig = replace(trunk, embed_dim=embed, num_heads=tuple(heads))  # type: ignore[arg-type]
    return replace(config, video=video, width=config.width // times, vocab_size=1000)


@torch.inference_mode()
def rows(
    *,
    device: str = "cpu",
    repeats: int = 30,
    frames: int = FRAMES,
    side: int = SIDE,
    times: int | None = None,
    clips: int = CLIPS,
) -> list[dict[str, Any]]:
    """One row per preset against the ancestor, then rows of search.

    Args:
        device: Where to run.
        repeats: Samples per candidate.
        frames: Per clip (T).
        side: Of frames, pixels.
        times: How much narrower the models are; default: full size on a GPU, a quarter on a CPU.
        clips: Clips that are searched (N).

    Returns:
        Rows {setting, ours_ms, ancestor_ms, ratio, flop_ratio} (a ratio below 1 is faster), then rows
        {setting, ours_ms, feature_mb, peak_mb}: time and memory of one query.
    """
    times = times if times is not None else 1 if torch.device(device).type == "cuda" else NARROWER
    batch = GPU_BATCH if torch.device(device).type == "cuda" else 1
    return [
        *_against_ancestor(device, repeats, batch, frames, side, times),
        *search_rows(device=device, repeats=max(1, repeats // 10), frames=frames, side=side, times=times, clips=clips),
    ]


def _against_ancestor(
    device: str, repeats: int, batch: int, frames: int, side: int, times: int
) -> list[dict[str, Any]]:
    functions, counts = {}, {}
    for name in (*OURS, ANCESTOR):
        functions[name] = _forward(name, device, batch, frames, side, times)
        counts[name] = count_flops(_forward(name, "meta", batch, frames, side, times))
    median = {row.candidate: row.median_ms for row in measure(functions, repeats=repeats, device=device)}
    size = "full size" if times == 1 else f"1/{times} of the widths"
    return [
        {
            "setting": f"{name}, {size}, {batch} x {frames} frames of {side}, {WORDS} words",
            "ours_ms": median[name],
            "ancestor_ms": median[ANCESTOR],
            "ratio": median[name] / median[ANCESTOR],
            "flop_ratio": counts[name] / counts[ANCESTOR],
        }
        for name in OURS
    ]


def _forward(name: str, device: str, batch: int, frames: int, side: int, times: int) -> Callable[[], Any]:
    """From pixels and words to fused tokens; on the meta device to be counted."""
    model = _model(evilm_config(name), device, times)
    clip = torch.zeros(batch, frames, 3, side, side, device=device)
    ids = torch.zeros(batch, WORDS, dtype=torch.long, device=device)

    def run() -> Any:
        with torch.no_grad():
            return model.fuse(model.encode_video(clip), model.encode_text(ids)).text

    return run


def _model(config: EViLMConfig, device: str, times: int) -> EViLM:
    """Random weights; no head for codes, which inference does not need."""
    config = replace(narrow(config, times) if times > 1 else config, codebook_size=0)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(0)
        return EViLM(config).eval()


@torch.inference_mode()
def search_rows(
    *,
    device: str = "cpu",
    repeats: int = 3,
    frames: int = FRAMES,
    side: int = SIDE,
    times: int = NARROWER,
    clips: int = CLIPS,
) -> list[dict[str, Any]]:
    """Time and memory of one query over clips whose features are kept, with `evilm_35m_dual`'s layout.

    Returns:
        Rows {setting, ours_ms, feature_mb, peak_mb} for every pair through fusion, the nearest 128 through fusion, and
        the cosine alone; `feature_mb` is what is kept of all clips, `peak_mb` what a query needs beside it.
    """
    model = _model(evilm_config("evilm_35m_dual"), device, times)
    generator = torch.Generator().manual_seed(0)
    one = model.encode_video(torch.zeros(1, frames, 3, side, side, device=device))
    tokens = torch.randn(clips, *one.tokens.shape[1:], generator=generator).to(device)
    width, contrast = model.config.width, model.config.contrastive_width
    vectors = torch.nn.functional.normalize(torch.randn(clips, contrast, generator=generator), dim=-1).to(device)
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=device)
    video = VideoFeatures(tokens, mask, one.grid, vectors)
    ids = torch.randint(model.config.vocab_size, (1, WORDS), generator=generator).to(device)

    def text() -> TextFeatures:
        return model.encode_text(ids)

    functions: dict[str, Callable[[], Any]] = {
        "every clip through fusion": lambda: exhaustive_scores(model, video, text()),
        f"the nearest {RERANK_K} through fusion": lambda: reranked_scores(model, video, text()),
        "cosine alone": lambda: cosines(video, text()),
    }
    kept = (tokens.numel() + vectors.numel()) * tokens.element_size() / 2**20
    median = {row.candidate: row.median_ms for row in measure(functions, repeats=repeats, warmup=1, device=device)}
    return [
        {
            "setting": f"query over {clips} clips of {tokens.shape[1]} tokens, width {width}: {name}",
            "ours_ms": median[name],
            "feature_mb": kept,
            "peak_mb": measure_memory(function, device=device).peak_bytes / 2**20,
        }
        for name, function in functions.items()
    ]
