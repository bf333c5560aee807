"""Documents that teach a language model to look things up in its context, from text alone.

A frozen language model can only read pictures if it has learned to read facts. These documents state facts and then
ask for some of them: as sentences in any order ("row 3 col 5 is seven."), as a table with row names, or as a bare grid
of words in reading order, which is what a projector writes when it turns every patch into the word of its cell.

Documents are arrays of token ids, put together without a tokenizer. Dims: n tokens of a document.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mm.data.frames import QUESTIONS
from mm.data.tokenizer import word_ids
from mm.data.words import COLOURS, DIGITS, GLYPHS, PUNCTUATION, SHAPES, VOCABULARY

FACT_FORMS = (
    "row {row} col {col} is {word}.",
    "row {row} col {col} {word}.",
    "{word} is at row {row} col {col}.",
    "the cell in row {row} col {col} holds {word}.",
)
TURN = "question: row {row} col {col}? answer: {word}<eos>"
ROW_NAME = "row {row}:"
MOVE_FORMS = ("frame {frame} {axis} {place}.", "frame {frame}: {axis} {place}.", "clip {frame} {axis} {place}.")
PLAIN_TURN = "question: {question} answer: {word}<eos>"
VALUES = (DIGITS, DIGITS, DIGITS, GLYPHS, tuple(COLOURS), SHAPES)
"""What stands in the cells; one group per document, digits in half of them."""
SIDE = 8
"""Largest number of rows and columns."""


def split_words(text: str) -> list[str]:
    """Words, tags and punctuation of a text of this world; the tokenizer gives the same for it."""
    for mark in ".,:?;!":
        text = text.replace(mark, f" {mark} ")
    return text.replace("<", " <").replace(">", "> ").lower().split()


def encode(text: str) -> np.ndarray:
    """Token ids of a text, without `<bos>`, (n,) int64.

    Raises:
        ValueError: a word is not in the vocabulary.
    """
    ids = word_ids()
    words = split_words(text)
    unknown = sorted({word for word in words if word not in ids})
    if unknown:
        raise ValueError(f"not in the vocabulary of the procedural world: {', '.join(unknown)} (in {text!r})")
    return np.array([ids[word] for word in words], np.int64)


def decode(ids: np.ndarray) -> str:
    """Text of token ids, with punctuation at its word; `encode` gives the ids again."""
    text = " ".join(VOCABULARY[index] for index in ids)
    for mark in (*PUNCTUATION, "<eos>"):
        text = text.replace(f" {mark}", mark)
    return text


def fill(form: str, slots: dict[str, np.ndarray]) -> np.ndarray:
    """Many sentences of one form at once, (sentences, n) int64; every slot holds the ids (sentences,) of one word."""
    ids = word_ids()
    words = split_words(form)
    count = len(next(iter(slots.values())))
    sentences = np.empty((count, len(words)), np.int64)
    for column, word in enumerate(words):
        sentences[:, column] = slots[word[1:-1]] if word.startswith("{") else ids[word]
    return sentences


def word_array(words: Sequence[str]) -> np.ndarray:
    """Token ids of single words, (words,) int64."""
    return np.array([word_ids()[word] for word in words], np.int64)


def _number_ids(numbers: np.ndarray) -> np.ndarray:
    return word_array([str(number) for number in numbers])


def _ask(rng: np.random.Generator, budget: int, rows: np.ndarray, cols: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Questions about facts drawn without replacement, as many as fit in `budget` tokens and at least one, (n,)."""
    length = len(split_words(TURN))
    asked = rng.permutation(len(words))[: max(1, budget // length)]
    return fill(TURN, {"row": rows[asked], "col": cols[asked], "word": words[asked]}).ravel()


def facts(rng: np.random.Generator, budget: int) -> np.ndarray:
    """Between 1 and 64 facts about different cells in any order, then questions about some of them, (n,) int64."""
    form = FACT_FORMS[rng.integers(len(FACT_FORMS))]
    room = (budget - len(split_words(TURN))) // len(split_words(form))
    count = int(rng.integers(1, max(2, min(SIDE * SIDE, room) + 1)))
    row, col = np.divmod(rng.permutation(SIDE * SIDE)[:count], SIDE)
    values = word_array(VALUES[rng.integers(len(VALUES))])
    slots = {
        "row": _number_ids(row + 1),
        "col": _number_ids(col + 1),
        "word": values[rng.integers(len(values), size=count)],
    }
    stated = fill(form, slots).ravel()
    return np.concatenate([stated, _ask(rng, budget - len(stated), slots["row"], slots["col"], slots["word"])])


def inline(rng: np.random.Generator, budget: int) -> np.ndarray:
    """One question that states its facts itself: it can be answered whatever the picture shows, (n,) int64."""
    room = (budget - len(split_words(TURN))) // len(split_words(FACT_FORMS[0]))
    question, answer = inline_question(rng, facts=min(12, room))
    return encode(PLAIN_TURN.format(question=question, word=answer))


def inline_question(rng: np.random.Generator, facts: int) -> tuple[str, str]:
    """A question with 1 to `facts` facts about different cells in front of it, and its answer."""
    count = int(rng.integers(1, facts + 1))
    cells = [(cell // SIDE + 1, cell % SIDE + 1) for cell in rng.permutation(SIDE * SIDE)[:count]]
    values = VALUES[rng.integers(len(VALUES))]
    words = [values[index] for index in rng.integers(len(values), size=count)]
    stated = [FACT_FORMS[0].format(row=row, col=col, word=word) for (row, col), word in zip(cells, words, strict=True)]
    asked = int(rng.integers(count))
    row, col = cells[asked]
    return f"{' '.join(stated)} row {row} col {col}?", words[asked]


def _side(rng: np.random.Generator, room: int) -> int:
    """Side of a grid: the largest that fits in half of the documents, else any."""
    largest = int(np.clip(np.sqrt(max(1, room)), 1, SIDE))
    return largest if rng.random() < 0.5 else int(rng.integers(1, largest + 1))


def _square(rng: np.random.Generator, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of the row numbers, column numbers and words of a full grid in reading order, each (side * side,)."""
    values = word_array(VALUES[rng.integers(len(VALUES))])
    row, col = np.divmod(np.arange(side * side), side)
    return _number_ids(row + 1), _number_ids(col + 1), values[rng.integers(len(values), size=side * side)]


def grid(rng: np.random.Generator, budget: int) -> np.ndarray:
    """The words of a square grid in reading order and nothing else, then questions by row and column, (n,) int64."""
    rows, cols, words = _square(rng, _side(rng, budget - len(split_words(TURN))))
    return np.concatenate([words, _ask(rng, budget - len(words), rows, cols, words)])


def table(rng: np.random.Generator, budget: int) -> np.ndarray:
    """A square grid with the name of every row in front of it, then questions, (n,) int64."""
    name = len(split_words(ROW_NAME)) + 1
    side = _side(rng, budget - len(split_words(TURN)) - name * SIDE)
    rows, cols, words = _square(rng, side)
    names = fill(ROW_NAME, {"row": rows[::side]})
    stops = np.full((side, 1), word_ids()["."])
    stated = np.concatenate([names, words.reshape(side, side), stops], axis=1).ravel()
    return np.concatenate([stated, _ask(rng, budget - len(stated), rows, cols, words)])


def moves(rng: np.random.Generator, budget: int) -> np.ndarray:
    """Where something stands in each frame, then which way it goes, (n,) int64."""
    form = MOVE_FORMS[rng.integers(len(MOVE_FORMS))]
    choices, question = list(QUESTIONS.items())[rng.integers(len(QUESTIONS))]
    across = choices == frozenset(("left", "right"))
    forward = rng.random() < 0.5
    word = {(True, True): "right", (True, False): "left", (False, True): "down", (False, False): "up"}[across, forward]
    turn = encode(PLAIN_TURN.format(question=question, word=word))
    count = int(rng.integers(2, max(3, min(SIDE, (budget - len(turn)) // len(split_words(form))) + 1)))
    places = np.sort(rng.permutation(SIDE)[:count])
    slots = {
        "frame": _number_ids(np.arange(1, count + 1)),
        "axis": np.full(count, word_ids()["col" if across else "row"]),
        "place": _number_ids((places if forward else places[::-1]) + 1),
    }
    return np.concatenate([fill(form, slots).ravel(), turn])


LOOKUPS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "facts": facts,
    "grid": grid,
    "table": table,
    "inline": inline,
    "moves": moves,
}
"""Kind of document -> writer `f(rng, budget)`; the document has at most `budget` tokens when budget is 40 or more."""
