"""Accuracy of answers to questions about videos, with the data set's answer list.

An answer that the model cannot give (not in its list, or not one word of its tokenizer) counts as wrong, and the share
of such questions is said.
Source: VIOLETv2 (arXiv:2209.01540), MSRVTT-QA and MSVD-QA.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from mm.data.video_files import VideoFiles
from mm.encoders.evilm.annotations import VideoRow
from mm.encoders.evilm.model import EViLM
from mm.encoders.evilm.retrieval import EncodedClips, encode_rows


def answer_accuracy(
    model: EViLM,
    rows: Sequence[VideoRow],
    files: VideoFiles,
    *,
    answers: Sequence[str] | None = None,
    num_frames: int = 5,
    batch_size: int = 8,
    skip_unreadable: bool = False,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items,
) -> dict[str, Any]:
    """Share of questions whose best answer is the right one.

    Args:
        model: With tokenizer.
        rows: With question and answer; every video is read once, whatever the number of its questions.
        files: Where the videos are.
        answers: Answer list, see `top_answers`; None takes the model's own, and without one every word. Entries that
            the model cannot give are dropped and counted.
        num_frames: Evenly spaced frames per clip.
        batch_size: Clips, and questions, per pass.
        skip_unreadable: Leave out what cannot be read and say so; else stop there.
        progress: Wraps (videos, how many); for a bar.

    Returns:
        `accuracy` over all questions, `accuracy_of_answerable`, `answerable` (share), `always_most_frequent` (accuracy
        of the commonest answer of these rows), how many `questions` and `answers`, and `problems`.

    Raises:
        ValueError: a row without question, none of the answers can be given, or a question longer than the limit.
    """
    bare = next((row for row in rows if not row.question), None)
    if bare is not None:
        raise ValueError(f"{bare.place}: has no question; retrieval is what captions are for")
    names, dropped = _answer_list(model, answers)
    clips = encode_rows(
        model,
        rows,
        files,
        num_frames=num_frames,
        batch_size=batch_size,
        skip_unreadable=skip_unreadable,
        progress=progress,
    )
    number = {row.video: place for place, row in enumerate(clips.rows)}
    asked = [row for row in rows if row.video in number]
    said = _said(model, clips, [number[row.video] for row in asked], asked, names, batch_size)
    right = [one == row.answer for one, row in zip(said, asked, strict=True)]
    possible = _possible(model, [row.answer for row in asked], names)
    commonest = Counter(row.answer for row in asked).most_common(1)[0][1]
    return {
        "questions": len(asked),
        "answers": len(names) if names else "every word",
        "answers_dropped": dropped,
        "accuracy": sum(right) / len(asked),
        "accuracy_of_answerable": sum(right) / max(sum(possible), 1),
        "answerable": sum(possible) / len(asked),
        "always_most_frequent": commonest / len(asked),
        "problems": clips.problems,
    }


def _answer_list(model: EViLM, answers: Sequence[str] | None) -> tuple[tuple[str, ...] | None, int]:
    """The answers that can be given, and how many were asked for and cannot."""
    if answers is None:
        return model.config.answers or None, 0
    cannot = set(model.unanswerable(answers))
    names = tuple(answer for answer in dict.fromkeys(answers) if answer not in cannot)
    if not names:
        listed = ", ".join(map(repr, list(dict.fromkeys(answers))[:8]))
        raise ValueError(f"none of the answers ({listed}) can be given by this model")
    return names, len(cannot)


@torch.no_grad()
def _said(
    model: EViLM,
    clips: EncodedClips,
    numbers: Sequence[int],
    asked: Sequence[VideoRow],
    names: tuple[str, ...] | None,
    batch_size: int,
) -> list[str]:
    said: list[str] = []
    known = model.answer_names(names)
    for first in range(0, len(asked), batch_size):
        part = torch.tensor(numbers[first : first + batch_size], device=clips.video.tokens.device)
        questions = [row.question for row in asked[first : first + batch_size]]
        logits = model.answer_logits(clips.video.rows(part), questions, answers=names)
        said += [known[index] for index in logits.argmax(1).tolist()]
    return said


def _possible(model: EViLM, answers: Sequence[str], names: tuple[str, ...] | None) -> list[bool]:
    known = set(names) if names else set(answers) - set(model.unanswerable(sorted(set(answers))))
    return [answer in known for answer in answers]
