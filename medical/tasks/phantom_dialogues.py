"""Questions and answers about phantoms, and the writer's tiny tokenizer. Questions use the words of the reports.

Yes/no questions ask for findings, choice questions for an attribute of a finding that is there; a request asks for the
whole report.
Dims: B scans, Q dialogues per scan, N question tokens, T answer tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mm.data.seeded_module import SeededBatches
from mm.data.split import generator
from mm.medical.phantom_reports import NORMAL, TEMPLATES, report, vocabulary
from mm.medical.phantoms import CHOICES, PLACES, Case, draw_case, render
from mm.medical.velvet.data import phantom_tokenizer, windowed
from mm.medical.velvet.loss import IGNORE

EXISTENCE = {
    "lung": "Is there a nodule of the lung?",
    "pleura": "Is there a pleural effusion?",
    "liver": "Is there a lesion in the liver?",
    "spleen": "Is the spleen enlarged?",
    "kidney": "Is there a lesion of the kidney?",
    "spine": "Is there a lesion of the spine?",
    "aorta": "Is the aorta normal?",
}
"""Place -> question; all ask for a finding but the last, which asks for its absence."""
SUBJECT = {
    "scan": "scan",
    "lung": "lung nodule",
    "pleura": "pleural effusion",
    "liver": "liver lesion",
    "kidney": "kidney lesion",
    "spine": "spine lesion",
    "aorta": "abdominal aorta",
}
"""Place -> what an attribute belongs to."""
REQUEST = "Report on the scan of chest and abdomen."
"""Asks for the report."""
MARKS = ("<pad>", "<bos>", "<eos>", "<unk>")
LENGTH = 112
"""Room for every report, tokens of the language model."""


@dataclass(frozen=True)
class Dialogue:
    """One question with its answer."""

    question: str
    answer: str
    kind: str
    """yes_no, choice or report."""


def dialogues(case: Case, seed: int, count: int) -> list[Dialogue]:
    """The report request and `count - 1` questions about a case; choice questions only about findings it has.

    Example:
        >>> [one.kind for one in dialogues(draw_case(1), 0, 3)][0]
        'report'
    """
    rng = generator(seed, "phantom questions")
    asked = [Dialogue(REQUEST, " ".join(report(case)), "report")]
    while len(asked) < count:
        if rng.random() < 0.5:
            asked.append(existence(case, str(rng.choice(PLACES))))
        else:
            asked.append(choice(case, rng))
    return asked


def existence(case: Case, place: str) -> Dialogue:
    """Is there a finding?"""
    found = case.of(place) is not None
    yes = found != (place == "aorta")
    return Dialogue(EXISTENCE[place], "yes" if yes else "no", "yes_no")


def choice(case: Case, rng: np.random.Generator) -> Dialogue:
    """Which value has an attribute? Both are named, in either order."""
    having = [finding for finding in case.findings if finding.attributes]
    finding = having[int(rng.integers(len(having)))]
    name = str(rng.choice(sorted(finding.attributes)))
    one, other = rng.permutation(CHOICES[finding.place][name]).tolist()
    return Dialogue(f"Is the {SUBJECT[finding.place]} {one} or {other}?", finding.attributes[name], "choice")


def findings_in(text: str) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Findings that a report states, whatever their wording: place and attributes; unknown sentences are left out.

    Example:
        >>> findings_in("Enlargement of the spleen. No lung nodule.")
        {('spleen', ())}
    """
    found = set()
    for sentence in re.split(r"(?<=\.)\s+", text.strip()):
        plain = _plain(sentence)
        for place, pattern in _patterns():
            if match := pattern.fullmatch(plain):
                found.add((place, tuple(sorted(match.groupdict().items()))))
                break
    return found


@cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Every template as a pattern over plain text."""
    found = []
    for place, texts in TEMPLATES.items():
        for text in texts:
            pattern = re.escape(_plain(text)).replace(r"\{", "{").replace(r"\}", "}")
            for name, values in CHOICES[place].items():
                pattern = pattern.replace(f"{{{name}}}", f"(?P<{name}>{'|'.join(values)})", 1)
            found.append((place, re.compile(pattern)))
    return tuple(found)


def _plain(text: str) -> str:
    """Lower case, single blanks, no marks."""
    return " ".join(re.sub(r"[.,]", " ", text.lower()).split())


@cache
def writer_words() -> tuple[str, ...]:
    """Vocabulary of the tiny language model: marks, the words of reports, and yes."""
    normal = {word for texts in NORMAL.values() for text in texts for word in _plain(text).split()}
    return (*MARKS, *sorted({*vocabulary(), *normal, "yes", "no"}))


def writer_tokenizer() -> Any:
    """Word-level tokenizer of the tiny language model: lower case, marks apart; decoding puts them to their word."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(writer_words())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    glue = [decoders.Replace(f" {mark}", mark) for mark in ".,"]
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=False), *glue])
    pad, bos, eos, unk = MARKS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk, model_max_length=512
    )


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DialogueConfig:
    """Dialogues about phantoms."""

    size: int = 36
    """Edge of the phantoms, voxels."""
    questions: int = 6
    """Dialogues per scan (Q); the first asks for the report."""
    batch_size: int = 8
    """Scans per batch and process (B)."""
    held_out_batches: int = 4
    """Batches of the validation and test sets."""
    workers: int = 0
    """Loading processes."""

    def __post_init__(self) -> None:
        if self.questions < 1:
            raise ValueError(f"questions must be at least 1, got {self.questions}")


class DialogueData(SeededBatches):
    """Lightning data module of dialogues about phantoms, see `dialogue_batch`."""

    def __init__(self, config: DialogueConfig | None = None) -> None:
        self.config = config or DialogueConfig()
        super().__init__(
            partial(dialogue_batch, config=self.config),
            batch_size=self.config.batch_size,
            held_out_batches=self.config.held_out_batches,
            workers=self.config.workers,
        )


def dialogue_batch(seeds: Sequence[int], config: DialogueConfig) -> dict[str, Tensor]:
    """Dialogues about the phantoms of some seeds.

    Returns:
        `volume` (B, 1, N, N, N), `scan` (B Q,) the row of each dialogue's volume, the fields of `TokenBatch` of the
        questions (B Q, N), `answer_ids`, `answer_mask`, `labels` (B Q, T), and `yes_no` (B Q,): 1, 0, or -100.
    """
    cases = [draw_case(seed) for seed in seeds]
    volumes = torch.stack([windowed(render(case, config.size).hu) for case in cases])
    asked = [dialogues(case, seed, config.questions) for case, seed in zip(cases, seeds, strict=True)]
    flat = [one for several in asked for one in several]
    batch = {
        "volume": volumes,
        "scan": torch.arange(len(cases)).repeat_interleave(config.questions),
        **phantom_tokenizer()([one.question for one in flat], length=24).to_dict(),
        **answer_rows([one.answer for one in flat]),
    }
    states = {("yes_no", "yes"): 1, ("yes_no", "no"): 0}
    batch["yes_no"] = torch.tensor([states.get((one.kind, one.answer), IGNORE) for one in flat])
    return batch


def answer_rows(answers: Sequence[str]) -> dict[str, Tensor]:
    """Answers as ids of the tiny tokenizer: `answer_ids` (begin, words), `answer_mask`, `labels` (words, end)."""
    ids = {word: index for index, word in enumerate(writer_words())}
    pad, bos, eos, unk = range(len(MARKS))
    rows = torch.full((len(answers), LENGTH), pad)
    labels, mask = torch.full_like(rows, IGNORE), torch.zeros_like(rows)
    for row, answer in enumerate(answers):
        words = [ids.get(word, unk) for word in re.findall(r"\w+|[^\w\s]", answer.lower())][: LENGTH - 1]
        rows[row, : len(words) + 1] = torch.tensor([bos, *words])
        labels[row, : len(words) + 1] = torch.tensor([*words, eos])
        mask[row, : len(words) + 1] = 1
    longest = int(mask.sum(1).max())
    return {"answer_ids": rows[:, :longest], "answer_mask": mask[:, :longest], "labels": labels[:, :longest]}
