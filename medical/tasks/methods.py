"""What a model can be asked to do with a scan: the methods of `VelvetModel` beyond tensors.

Each is a few lines over a function of this package; a scan is a `Volume` or a path.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import nn

from mm.medical.tasks.parts import MissingPartError, Part, beside, checked
from mm.medical.tasks.scan_input import Scan, as_volume, cube_of
from mm.medical.velvet.loss import LevelEmbeddings

if TYPE_CHECKING:
    from mm.medical.tasks.answering import Answer, DraftReport
    from mm.medical.tasks.index import ScanIndex
    from mm.medical.tasks.retrieval import Hit, RetrievalConfig
    from mm.medical.tasks.segmentation import Segmentation, SegmentConfig
    from mm.medical.tasks.writer import Writer
    from mm.medical.velvet.segmenter import Segmenter


class TaskMethods:
    """Mixin of `VelvetModel`; a segmenter and a writer are attached, or found beside the model's folder."""

    _parts: dict[Part, nn.Module] | None = None
    """Attached parts; they are not saved with the model and don't move with it."""
    source_folder: Path | None = None
    """Folder that the model was read from."""

    def attach(
        self, *, segmenter: nn.Module | str | Path | None = None, writer: nn.Module | str | Path | None = None
    ) -> Self:
        """Give the model its segmentation network or its writer: an object, a shipped name or a folder.

        Raises:
            ValueError: something else than that part.
        """
        wanted: dict[Part, nn.Module | str | Path | None] = {"segmenter": segmenter, "writer": writer}
        for part, given in wanted.items():
            if given is not None:
                self._parts = {**(self._parts or {}), part: checked(part, given)}
        return self

    def part(self, name: Part, task: str) -> nn.Module:
        """An attached part, or the one beside the model's folder, on the model's device.

        Raises:
            MissingPartError: there is none; the message says how to train it.
        """
        found = (self._parts or {}).get(name) or beside(self.source_folder, name)
        if found is None:
            raise MissingPartError(name, task)
        self._parts = {**(self._parts or {}), name: found}
        return found.to(cast(Any, self).device)

    # --- tasks -------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def embed(self, scan: Scan, *, window: str | None = None) -> LevelEmbeddings:
        """Vectors of a scan at every level: report (1, E), regions of sentences and words (1, S, E).

        Args:
            scan: `Volume` or path.
            window: Intensity window; default: -175..250 HU, 0..255 for grey values, 1..99 % for unknown units.
        """
        model: Any = self
        cube = cube_of(as_volume(scan), model.config.vision.volume_size, window).to(model.device)
        return model.volume_embeddings(model.encode_volume(cube))  # type: ignore[no-any-return]

    def segment(
        self,
        scan: Scan,
        config: SegmentConfig | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Segmentation:
        """Labels of a whole scan on its own grid, with volumes in ml.

        Raises:
            MissingPartError: the model has no segmenter.
        """
        from mm.medical.tasks.segmentation import segment

        return segment(cast("Segmenter", self.part("segmenter", "segmentation")), scan, config, progress=progress)

    def retrieve(
        self, query: Scan, index: ScanIndex | str | Path, k: int = 5, config: RetrievalConfig | None = None
    ) -> list[Hit]:
        """Nearest entries of an index: a scan asks for reports (or scans), a text asks for scans.

        Args:
            query: `Volume`, path of an existing file or folder, or a text.
            index: From `mm medical index`, or its folder.
            k: How many.
            config: Levels, fusion and re-ranking.

        Raises:
            ValueError: the index was made by another model, or holds nothing that was asked for.
        """
        from mm.medical.tasks.retrieval import retrieve

        return retrieve(cast(Any, self), query, index, k, config)

    def ask(
        self,
        scan: Scan,
        question: str,
        *,
        choices: tuple[str, ...] = (),
        window: str | None = None,
        max_new_tokens: int = 50,
    ) -> Answer:
        """Answer a question about a scan.

        Args:
            scan: `Volume` or path.
            question: A sentence; the model knows what it was trained on.
            choices: Answers to choose from; they are appended to the question, as published.
            window: Intensity window; default as `embed`.
            max_new_tokens: Longest answer.

        Raises:
            MissingPartError: the model has no writer.
            ValueError: an empty question.
        """
        from mm.medical.tasks.answering import ask

        writer = cast("Writer", self.part("writer", "a question"))
        options: dict[str, Any] = {"choices": choices, "window": window, "max_new_tokens": max_new_tokens}
        return ask(cast(Any, self), writer, scan, question, **options)

    def report(
        self,
        scan: Scan,
        *,
        index: ScanIndex | str | Path | None = None,
        k: int = 3,
        window: str | None = None,
        max_new_tokens: int = 512,
    ) -> DraftReport:
        """A draft report, for research only, with the nearest reports of an index as its references.

        Args:
            scan: `Volume` or path.
            index: Where references come from; None gives none.
            k: How many references.
            window: Intensity window; default as `embed`.
            max_new_tokens: Longest text.

        Raises:
            MissingPartError: the model has no writer.
        """
        from mm.medical.tasks.answering import draft_report

        writer = cast("Writer", self.part("writer", "a report"))
        options: dict[str, Any] = {"index": index, "k": k, "window": window, "max_new_tokens": max_new_tokens}
        return draft_report(cast(Any, self), writer, scan, **options)
