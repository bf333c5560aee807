"""Search in an index: a scan asks for reports or scans, a text asks for scans; levels are fused, the best re-ranked.

Dims: Q one query, N entries, C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mm.medical.tasks.index import ScanIndex
from mm.medical.tasks.page import CasePage
from mm.medical.tasks.pictures import png_of_pixels
from mm.medical.tasks.scan_input import Scan, as_volume, cube_of
from mm.medical.velvet.config import LEVELS, Level
from mm.medical.velvet.loss import LevelEmbeddings, level_similarity, report_similarity
from mm.medical.velvet.model import MATCHES
from mm.medical.volumes.volume import Volume

if TYPE_CHECKING:
    from mm.medical.velvet.model import VelvetModel

Target = Literal["reports", "scans"]


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """How entries are scored."""

    levels: tuple[Level, ...] = ("report",)
    """Levels whose similarities are fused; report alone is the published default."""
    fusion: Literal["mean", "zscore"] = "zscore"
    """mean: of the raw similarities, as published (their scales differ: cosine against 10 log-sum-exp); zscore: of the
    similarities standardised over the candidates."""
    candidates: int = 256
    """Entries that are scored at all levels: the best at the report level, as published."""
    rerank: int = 0
    """The first so many get the logit of the match head added, and trade places among themselves; 0 leaves it out."""
    target: Target | None = None
    """What is looked for; None: reports for a scan, scans for a text."""

    def __post_init__(self) -> None:
        if not self.levels or set(self.levels) - set(LEVELS) or len(set(self.levels)) != len(self.levels):
            raise ValueError(f"levels must name some of {', '.join(LEVELS)}, each once, got {self.levels}")
        if self.fusion not in ("mean", "zscore"):
            raise ValueError(f"fusion is mean or zscore, got {self.fusion!r}")
        if self.candidates < 1 or self.rerank < 0:
            raise ValueError(
                f"candidates must be at least 1 and rerank not negative, got {self.candidates} and {self.rerank}"
            )
        if self.target not in (None, "reports", "scans"):
            raise ValueError(f"target is reports or scans, got {self.target!r}")


@dataclass(frozen=True)
class Hit:
    """One entry that was found."""

    row: int
    """Number in `index.entries`."""
    key: str
    """Hash of the scan."""
    score: float
    """Fused score; only its order means something."""
    report: str
    """Its report, or nothing."""
    place: str
    """Place of the file, if the index keeps names."""
    similarities: dict[str, float]
    """Raw similarity per level, and "match" after re-ranking."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "key": self.key,
            "score": self.score,
            "report": self.report,
            "place": self.place,
            **{f"similarity_{name}": value for name, value in self.similarities.items()},
        }


@dataclass(frozen=True)
class Query:
    """One side of the comparison."""

    kind: Literal["scan", "text"]
    levels: LevelEmbeddings
    """Of one scan or one text."""
    memory: Tensor | None = None
    """Visual tokens of a scan, (1, V, D)."""
    states: Tensor | None = None
    """Text states of a text, (1, N, D)."""
    visible: Tensor | None = None
    """Its mask, (1, N, N)."""


@torch.inference_mode()
def retrieve(
    model: VelvetModel,
    query: Scan,
    index: ScanIndex | str | Path,
    k: int = 5,
    config: RetrievalConfig | None = None,
    *,
    window: str | None = None,
) -> list[Hit]:
    """Nearest entries of an index, best first.

    Args:
        model: The one that made the index.
        query: `Volume`, an existing path, or a text.
        index: The index or its folder.
        k: How many; fewer come if the index is smaller.
        config: Levels, fusion, re-ranking, what to look for.
        window: Intensity window of a scan; default: that of the index.

    Raises:
        ValueError: another model, nothing to look for, or a combination that has no meaning.
    """
    config = config or RetrievalConfig()
    index = index if isinstance(index, ScanIndex) else ScanIndex(index)
    index.check_model(model)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    asked = as_query(model, query, window or index.window)
    target: Target = config.target or ("reports" if asked.kind == "scan" else "scans")
    rows = _rows(index, target)
    _check(model, asked, target, config)
    if asked.kind == "scan" and target == "scans":
        return _hits(index, rows, {"report": _report_scores(asked, index, rows, "report")}, config, k)
    coarse = _report_scores(asked, index, rows, "text_report" if target == "reports" else "report")
    best = coarse.topk(min(config.candidates, len(rows))).indices.tolist()
    rows, coarse = [rows[place] for place in best], coarse[best]
    scores = {"report": coarse} if "report" in config.levels else {}
    scores |= {level: _local(model, asked, index, rows, level) for level in config.levels if level != "report"}
    hits = _hits(index, rows, scores, config, max(k, config.rerank))
    if config.rerank:
        hits = _reranked(model, asked, index, hits, config.rerank)
    return hits[:k]


def as_query(model: VelvetModel, query: Scan, window: str | None = None) -> Query:
    """Vectors of a scan or a text.

    Raises:
        ValueError: an empty text.
    """
    if isinstance(query, str) and not Path(query).exists():
        if not query.strip():
            raise ValueError("the query is empty: pass a scan or a sentence")
        text = model.encode_text(**model.tokenize([query]))
        return Query("text", text.embeddings, states=text.states, visible=text.visible)
    volume: Volume = as_volume(query)
    features = model.encode_volume(cube_of(volume, model.config.vision.volume_size, window).to(model.device))
    memory = model.visual_memory(features) if model.adapter is not None else None
    return Query("scan", model.volume_embeddings(features), memory=memory)


def _rows(index: ScanIndex, target: Target) -> list[int]:
    rows = [row for row, entry in enumerate(index.entries) if target == "scans" or entry.report]
    if not rows:
        what = "reports: give the scans reports (NAME.txt beside NAME.nii.gz) and build it again"
        raise ValueError(f"the index holds no {what if target == 'reports' else 'usable scan'}")
    return rows


def _check(model: VelvetModel, asked: Query, target: Target, config: RetrievalConfig) -> None:
    if asked.kind == "text" and target == "reports":
        raise ValueError("a text is compared with scans: leave out target='reports'")
    lacking = [level for level in ("report", *config.levels) if level not in model.config.levels]
    if lacking:
        raise ValueError(f"this model has no {lacking[0]} level; it has {', '.join(model.config.levels)}")
    if asked.kind == "scan" and target == "scans" and (config.levels != ("report",) or config.rerank):
        raise ValueError("scans are compared with scans at the report level alone: levels=('report',), rerank=0")
    if config.rerank and model.match is None:
        raise ValueError("this model has no match head (text.fusion_layers=0): rerank must be 0")


def _report_scores(asked: Query, index: ScanIndex, rows: Sequence[int], feature: str) -> Tensor:
    """Cosine at the report level, (N,)."""
    gallery = index.vectors(rows, feature)
    own = asked.levels.report
    assert own is not None
    return report_similarity(own.cpu(), gallery)[0]


def _local(model: VelvetModel, asked: Query, index: ScanIndex, rows: Sequence[int], level: Level) -> Tensor:
    """Similarity at the sentence or word level, (C,), a few candidates at a time."""
    parts = []
    for start in range(0, len(rows), 32):
        some = rows[start : start + 32]
        if asked.kind == "scan":
            found = level_similarity(_cpu(asked.levels), index.texts(some), level, model.config.local)[0]
        else:
            found = level_similarity(index.scans(some), _cpu(asked.levels), level, model.config.local)[:, 0]
        parts.append(found)
    return torch.cat(parts)


def _cpu(levels: LevelEmbeddings) -> LevelEmbeddings:
    tensors = {name: value.cpu() for name, value in levels.__dict__.items() if isinstance(value, Tensor)}
    moved: dict[str, Any] = {
        name: value.float() if value.is_floating_point() else value for name, value in tensors.items()
    }
    return replace(levels, **moved)


def fused(scores: dict[str, Tensor], fusion: str) -> Tensor:
    """One score per candidate from those of the levels, (C,).

    Example:
        >>> fused({"report": torch.tensor([0.0, 1.0]), "word": torch.tensor([30.0, 10.0])}, "mean").tolist()
        [15.0, 5.5]
    """
    values = list(scores.values())
    if fusion == "zscore":
        values = [(v - v.mean()) / v.std(correction=0).clamp(min=1e-6) for v in values]
    return torch.stack(values).mean(0)


def _hits(
    index: ScanIndex, rows: Sequence[int], scores: dict[str, Tensor], config: RetrievalConfig, k: int
) -> list[Hit]:
    total = fused(scores, config.fusion if len(scores) > 1 else "mean")
    order = total.sort(descending=True, stable=True).indices[:k].tolist()
    hits = []
    for place in order:
        entry = index.entries[rows[place]]
        raw = {name: float(values[place]) for name, values in scores.items()}
        hits.append(Hit(rows[place], entry.key, float(total[place]), entry.report, entry.place, raw))
    return hits


def _reranked(model: VelvetModel, asked: Query, index: ScanIndex, hits: list[Hit], depth: int) -> list[Hit]:
    """The first `depth` hits with the match logit added, in their new order; the rest behind them."""
    first, rest = hits[:depth], hits[depth:]
    logits = match_scores(model, asked, index, [hit.row for hit in first])
    told = [
        replace(hit, score=hit.score + logit, similarities={**hit.similarities, "match": logit})
        for hit, logit in zip(first, logits.tolist(), strict=True)
    ]
    return sorted(told, key=lambda hit: -hit.score) + rest


def match_scores(model: VelvetModel, asked: Query, index: ScanIndex, rows: Sequence[int]) -> Tensor:
    """Logit "belongs together" minus "does not" of the query with each entry, (C,)."""
    found = []
    states: Tensor | None
    visible: Tensor | None
    memory: Tensor | None
    for row in rows:
        if asked.kind == "scan":
            text = model.encode_text(**model.tokenize([index.entries[row].report]))
            states, visible, memory = text.states, text.visible, asked.memory
        else:
            states, visible, memory = asked.states, asked.visible, index.feature(row, "memory")[None].to(model.device)
        assert states is not None and visible is not None and memory is not None
        logits = model.match_logits(states, visible, memory)[0]
        found.append(logits[MATCHES] - logits[1 - MATCHES])
    return torch.stack(found).float().cpu()


def gallery_page(index: ScanIndex, hits: Sequence[Hit], title: str, asked: str = "") -> CasePage:
    """The hits with their pictures and reports."""
    page = CasePage(title)
    if asked:
        page.text(f"Query: {asked}")
    cards = []
    for number, hit in enumerate(hits, 1):
        told = ", ".join(f"{name} {value:.3f}" for name, value in hit.similarities.items())
        head = f"{number}. scan {hit.key}{f' ({hit.place})' if hit.place else ''}"
        cards.append((png_of_pixels(index.picture(hit.row)), head, f"{told}. {hit.report or 'No report.'}"))
    page.gallery(cards)
    page.text("Pictures: axial, coronal and sagittal middle planes; the patient's right is on the left.")
    return page
