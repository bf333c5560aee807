"""Facet prompts: short questions behind a caption, each ending in a slot whose hidden state is one text embedding.

A template has one shared part (some words, the caption, a bridge) and K facets. Where a part ends is known in
characters when the text is put together, so nothing is searched for afterwards, whatever the tokenizer or the caption.
Source: FLAME (Cao et al. 2024, arXiv:2411.11927), multifaceted prompts; wording of the published code, to the letter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BOS = "{bos}"
"""Stands for the tokenizer's begin token inside a template; without such a token it vanishes, with its blank."""


@dataclass(frozen=True, kw_only=True)
class FacetTemplate:
    """What stands around a caption and which facets follow it.

    Example:
        >>> template = FacetTemplate(before='Image: "', after='" ,', facets=(" colour", " shape"), closing=" is")
        >>> template.render("a red ring.").text
        'Image: "a red ring." , colour is shape is'
    """

    before: str
    """Text in front of the caption."""
    after: str
    """Text between the caption and the facets; the last part that all facets see."""
    facets: tuple[str, ...]
    """What each facet asks, with its leading blank; `{bos}` is the tokenizer's begin token."""
    closing: str = ""
    """End of every facet; its last token is the slot that is read out."""

    def __post_init__(self) -> None:
        if not self.facets:
            raise ValueError("a template needs at least one facet")
        empty = [number for number, facet in enumerate(self.facets, 1) if not (facet + self.closing).strip()]
        if empty:
            raise ValueError(f"facet {empty[0]} of {len(self.facets)} is empty: nothing could be read out there")

    def render(self, caption: str, bos: str | None = None) -> FacetText:
        """The whole text, and where its parts end.

        Args:
            caption: Put in as it is; clean it with `mm.encoders.flame.caption.clean_captions` first.
            bos: The tokenizer's begin token as text, or None if it has none.
        """
        text = f"{self.before}{caption}{self.after}"
        ends = [len(text)]
        for facet in self.facets:
            text += (facet.replace(f" {BOS}", "").replace(BOS, "") if bos is None else facet.replace(BOS, bos)) + (
                self.closing
            )
            ends.append(len(text))
        blank = len(text) - len(text.lstrip())
        return FacetText(text=text[blank:], ends=tuple(end - blank for end in ends))


@dataclass(frozen=True)
class FacetText:
    """A caption inside a template."""

    text: str
    """What is tokenised."""
    ends: tuple[int, ...]
    """Character at which the shared part ends (exclusive), then the same for every facet; K + 1 numbers."""


PHRASES = (
    "this image description",
    "the category of the main object in this image",
    "the prominent characteristic or pattern of the main object in this image",
    "the category of the minor object in this image",
    "the prominent characteristic or pattern of the minor object in this image",
    "the primary action or event taking place in this image",
    "the overall atmosphere or emotion of this image",
)
"""The seven facets in the authors' order: the whole; entities (2 to 5); interaction; scene."""
CLOSING = ' means in just one word:"'
STEPS = '" . After thinking step by step ,'


def _official(before: str, count: int, *, begin: bool = True) -> FacetTemplate:
    """The authors' template with the first `count` facets; in theirs with several, a begin token opens the first."""
    first = f" {BOS} {PHRASES[0]}" if begin else f" {PHRASES[0]}"
    rest = tuple(f" {phrase}" for phrase in PHRASES[1:count])
    return FacetTemplate(before=before, after=STEPS, facets=(first, *rest), closing=CLOSING)


OFFICIAL: Mapping[str, FacetTemplate] = {
    "long": _official('Detailed Image description : "', 7),
    "short": _official('Image description : "', 3),
    "single": _official('Image description : "', 1, begin=False),
}
"""The authors' templates: long captions (K = 7), short captions (K = 3), raw captions and class names (K = 1)."""

QUESTION = " question: {} answer:"


def _asked(*questions: str) -> FacetTemplate:
    """Questions as the tiny language model of this toolkit knows them; the slot is where its answer would begin."""
    return FacetTemplate(before="", after="", facets=tuple(QUESTION.format(question) for question in questions))


WORLD: Mapping[str, FacetTemplate] = {
    "long": _asked(
        "what is in the picture?",
        "what shape is the thing?",
        "what colour is the thing?",
        "where is the thing?",
        "what texture is the thing?",
        "how many things are there?",
        "what colour is the background?",
    ),
    "short": _asked("what is in the picture?", "what shape is the thing?", "what colour is the thing?"),
    "single": _asked("what is in the picture?"),
}
"""Seven facets in the words of the procedural world, for the tiny language model."""

TEMPLATE_SETS: Mapping[str, Mapping[str, FacetTemplate]] = {"official": OFFICIAL, "world": WORLD}
"""Named sets, as configurations and commands call them."""


def template_set(templates: str | Mapping[str, FacetTemplate]) -> dict[str, FacetTemplate]:
    """A named set, or one's own mapping from template name to `FacetTemplate`.

    Raises:
        ValueError: unknown set, or a mapping without entries or with something else than templates.
    """
    if isinstance(templates, str):
        if templates not in TEMPLATE_SETS:
            raise ValueError(f"unknown template set {templates!r}; there are: {', '.join(TEMPLATE_SETS)}")
        return dict(TEMPLATE_SETS[templates])
    wrong = [name for name, template in templates.items() if not isinstance(template, FacetTemplate)]
    if not templates or wrong:
        raise ValueError(f"templates must map names to FacetTemplate, got {', '.join(wrong) or 'nothing'}")
    return dict(templates)
