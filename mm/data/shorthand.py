"""Text in shorthand: one word per visual fact, as chess players write `e4` for a square and `Ne4` for a knight on it.

`e3` names row 3, column 5 of a board, `e3seven` says that a seven stands there; `2redcircle` says that a red circle is
in the second of the nine places of a scene. A language model that has read documents in shorthand answers a question
by one attention step from the place that is asked for to the word that states it. A projector then only has to turn
each patch into such a word for the frozen model to read a picture.

Each turn of a board document is one of four kinds, from easy to hard. They share their parts, so that the easy ones
teach the steps of the hard one: `read` states a fact again (the key is the word just read), `cell` asks by the name of
a cell, `name` gives the name of a row and column, `spot` asks by row and column, as questions about pictures do.

Documents are arrays of token ids. Dims: n tokens of a document, T turns.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from mm.data.lookups import encode, fill, word_array
from mm.data.questions import FORMS
from mm.data.words import BOARD_WORDS, CELLS, COLOURS, DIGITS, PLACES, SCENE_WORDS, SHAPES

SIDE = 8
TURNS = {
    "read": "answer: {cell} {word}<eos>",
    "cell": "question: cell {cell}? answer: {word}<eos>",
    "name": "question: name of row {row} col {col}? answer: {cell}<eos>",
    "spot": "question: row {row} col {col}? answer: {word}<eos>",
}
SCENE_KINDS = ("colour", "shape", "place")
"""Questions about scenes whose answer is one attention step away."""


@cache
def _tables() -> dict[str, np.ndarray]:
    """Token ids: cells (64,), facts (64, 10), numbers 1..8 (8,), digits (10,)."""
    return {
        "cells": word_array(CELLS),
        "facts": word_array(BOARD_WORDS).reshape(len(CELLS), len(DIGITS)),
        "numbers": word_array([str(number) for number in range(1, SIDE + 1)]),
        "digits": word_array(DIGITS),
    }


def board_shorthand(rng: np.random.Generator, budget: int) -> np.ndarray:
    """Facts about some cells of a board in any order, then turns of all kinds, (n,) int64."""
    tables = _tables()
    longest = max(len(encode(form.format(row=1, col=1, cell="a1", word="one"))) for form in TURNS.values())
    most = max(1, min(SIDE * SIDE, budget - longest))
    count = min(most, int(rng.choice([4, 8, 16, 32, 64])))
    cells = rng.permutation(SIDE * SIDE)[:count]
    values = rng.integers(len(DIGITS), size=count)
    parts = [tables["facts"][cells, values]]
    room = budget - count
    while room >= longest:
        kind = str(rng.choice(list(TURNS)))
        asked = rng.integers(count, size=1)
        # Naming needs no fact, so it may ask for any cell.
        cell = rng.integers(SIDE * SIDE, size=1) if kind == "name" else cells[asked]
        slots = {
            "cell": tables["cells"][cell],
            "row": tables["numbers"][cell // SIDE],
            "col": tables["numbers"][cell % SIDE],
            "word": tables["digits"][values[asked]],
        }
        parts.append(fill(TURNS[kind], slots)[0])
        room -= len(parts[-1])
    return np.concatenate(parts)


def scene_shorthand(rng: np.random.Generator, budget: int) -> np.ndarray:
    """One to six things of different shapes and colours in any order, then turns about them, (n,) int64."""
    count = int(rng.integers(1, 7))
    shapes, colours = rng.permutation(len(SHAPES))[:count], rng.permutation(len(COLOURS))[:count]
    places = rng.permutation(len(PLACES))[:count]
    facts = word_array(SCENE_WORDS).reshape(len(PLACES), len(COLOURS), len(SHAPES))
    # A thing covers several patches, so its word may stand several times.
    times = rng.integers(1, 4, size=count)
    order = rng.permutation(np.repeat(np.arange(count), times))
    parts = [facts[places, colours, shapes][order]]
    room = budget - len(order)
    while True:
        index = int(rng.integers(count))
        kind = str(rng.choice(SCENE_KINDS))
        forms = FORMS[kind][:-1]  # the last wording is held out for paraphrase tests
        shape, colour = SHAPES[shapes[index]], tuple(COLOURS)[colours[index]]
        answer = {"colour": colour, "shape": shape, "place": PLACES[places[index]]}[kind]
        question = forms[rng.integers(len(forms))].format(shape=shape, colour=colour, name=f"{colour} {shape}")
        turn = encode(f"question: {question} answer: {answer}<eos>")
        if room < len(turn):
            return np.concatenate(parts)
        parts.append(turn)
        room -= len(turn)


SHORTHAND = {"board_shorthand": board_shorthand, "scene_shorthand": scene_shorthand}
"""Kind of document -> writer `f(rng, budget)`; the document has at most `budget` tokens when budget is 40 or more."""
