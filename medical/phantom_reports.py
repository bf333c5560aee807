"""Reports of phantoms: a sentence about the technique, one per finding, and some that say what is normal."""

from __future__ import annotations

import re
from functools import cache

from mm.data.split import generator
from mm.medical.phantoms import CHOICES, PLACES, Case, Finding

TEMPLATES: dict[str, tuple[str, ...]] = {
    "scan": ("{contrast} scan of chest and abdomen.", "ct of chest and abdomen, {contrast}."),
    "lung": (
        "A {size} {kind} nodule is seen in the {side} {part} lobe.",
        "There is a {size} {kind} nodule of the {side} lung, {part} part.",
    ),
    "pleura": ("{side} pleural effusion, {size}.", "There is a {size} pleural effusion on the {side}."),
    "liver": (
        "The {part} part of the liver shows a {size} {kind} lesion.",
        "A {size} {kind} lesion lies in the {part} liver.",
    ),
    "spleen": ("The spleen is enlarged.", "Enlargement of the spleen."),
    "kidney": (
        "The {side} kidney has a {kind} at its {part} pole.",
        "{kind} in the {part} pole of the {side} kidney.",
    ),
    "spine": ("A {kind} lesion of the {part} spine is noted.", "The {part} spine shows a {kind} lesion."),
    "aorta": ("The abdominal aorta is {kind}.", "{kind} aorta below the diaphragm."),
}
"""Place -> wordings; braces hold the attributes."""
NORMAL: dict[str, tuple[str, ...]] = {
    "lung": ("The lungs are free of nodules.", "No lung nodule."),
    "pleura": ("No pleural effusion.", "The pleural space is clear."),
    "liver": ("The liver is normal.", "No lesion of the liver is seen."),
    "spleen": ("The spleen is normal.", "Normal spleen."),
    "kidney": ("Both kidneys are normal.", "The kidneys show no lesion."),
    "spine": ("The spine is normal.", "No lesion of the spine."),
    "aorta": ("The aorta is normal.", "Normal calibre of the aorta."),
}
"""Place -> wordings when nothing was found there."""
NORMAL_PROBABILITY = 0.4
"""Chance that a normal place is mentioned."""


def report(case: Case, wording: int | None = None) -> list[str]:
    """Sentences that describe a case.

    Args:
        case: What was drawn.
        wording: Another seed for the choice of words; None takes the case's own. Two cases that differ in one attribute
            then differ in one word.

    Example:
        >>> from mm.medical.phantoms import draw_case
        >>> report(draw_case(1))[0]
        'unenhanced scan of chest and abdomen.'
    """
    return [sentence for _, sentence in described(case, wording)]


def described(case: Case, wording: int | None = None) -> list[tuple[int | None, str]]:
    """Sentences with the number of the finding in `case.findings` that each is about, None for normal places."""
    rng = generator(case.seed if wording is None else wording, "phantom wording")
    choice = {place: int(rng.integers(2)) for place in (*TEMPLATES, *NORMAL)}
    mention = {place: rng.random() < NORMAL_PROBABILITY for place in PLACES}
    order = ["scan", *rng.permutation(PLACES).tolist()]
    numbers = {finding.place: number for number, finding in enumerate(case.findings)}
    found: list[tuple[int | None, str]] = []
    for place in order:
        if place in numbers:
            finding = case.findings[numbers[place]]
            found.append((numbers[place], sentence_of(finding, choice[place])))
        elif mention[place]:
            found.append((None, NORMAL[place][choice[place]]))
    return found


def sentence_of(finding: Finding, variant: int) -> str:
    """One finding in words."""
    text = TEMPLATES[finding.place][variant % len(TEMPLATES[finding.place])]
    return text.format(**finding.attributes)


@cache
def attribute_words() -> frozenset[str]:
    """Words that only the volume can tell: values of attributes."""
    return frozenset(value for attributes in CHOICES.values() for values in attributes.values() for value in values)


@cache
def vocabulary() -> tuple[str, ...]:
    """All words and marks of the reports, sorted: the closed vocabulary of the demonstration."""
    texts = [text for group in (TEMPLATES, NORMAL) for texts in group.values() for text in texts]
    words = {word for text in texts for word in re.findall(r"[a-z]+|[.,]", re.sub(r"{\w+}", " ", text).lower())}
    return tuple(sorted(words | attribute_words()))
