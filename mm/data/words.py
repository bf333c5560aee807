"""The words of the procedural world: what can be seen, where it can be, and the words to talk about it.

The order of `VOCABULARY` is the order of the token ids. Shipped language models depend on it: add new words at the
end of `LATER_WORDS` only.
"""

from __future__ import annotations

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMERALS = tuple(str(number) for number in range(65))
GLYPHS = (
    *("plus", "cross", "ring", "box", "dot", "bar", "dash", "slash"),
    *("arrow", "tee", "corner", "stairs", "cup", "house", "heart", "checker"),
)

COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 130, 30),
    "yellow": (245, 205, 50),
    "green": (60, 165, 75),
    "cyan": (60, 195, 205),
    "blue": (50, 95, 205),
    "purple": (125, 65, 180),
    "pink": (240, 145, 190),
}
"""Colour word -> RGB of a thing."""

GROUNDS = {"white": (236, 236, 234), "grey": (150, 152, 156), "black": (30, 32, 38), "sand": (222, 204, 172)}
"""Colour word -> RGB of a background; disjoint from the colours of things."""

SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross", "ring", "moon")
TEXTURES = ("plain", "striped", "dotted", "checked")
GROUND_PATTERNS = ("plain", "striped", "checked", "grainy")
SIZES = ("small", "large")
DIRECTIONS = ("left", "right", "up", "down")
PLACES = (
    *("top left", "top middle", "top right"),
    *("middle left", "centre", "middle right"),
    *("bottom left", "bottom middle", "bottom right"),
)
"""The nine places of a scene, row by row."""

SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
IMAGE_TOKEN = "<image>"
MARKS = (IMAGE_TOKEN, "<mask>", "<cls>", "<sep>")
"""Special tokens that stand for something other than a word."""
TAGS = (
    *("<think>", "</think>", "<answer>", "</answer>"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
)
"""Mark-up that a model writes; ordinary tokens, so that they survive `skip_special_tokens=True`."""

PUNCTUATION = (".", ",", ":", "?", ";", "!")
FUNCTION_WORDS = (
    "question answer yes no row col cell board is are was holds shows contains there a an the of on in at to and or",
    "not with without it its this that which what where how many when who does do has have move moves moving goes go",
    "colour shape size texture kind number digit word picture image scene frame clip background thing things object",
    "objects left right above below up down top bottom middle centre next beside between near far from side corner",
    "first last second third fourth before after then also one same different any some all each both only none nothing",
    "empty you can see we find look looks written drawn placed stands lies sits appears seen count tell me describe",
    "small large big tiny little plain striped dotted checked grainy bright dark white grey black sand pattern surface",
    "covered made filled behind front under over across towards direction way toward still slowly quickly turns",
    "answers read reads while here now just very more less than as by for every other another part parts mark fine",
    "resize zoom closer enough clear main minor action mood calm busy stop start end tile tiles quarter position",
    "sentence caption long short text false true place places about pictures frames column rows cells digits letter",
    "need full resolution detail answerable unknown between inside outside larger smaller nearest only slow fast",
    "name",
)
CELLS = tuple(f"{column}{row}" for row in range(1, 9) for column in "abcdefgh")
"""Names of the cells of a board row by row, as on a chess board: the letter is the column, the digit the row."""
BOARD_WORDS = tuple(f"{cell}{digit}" for cell in CELLS for digit in DIGITS)
"""Shorthand for "this digit stands in this cell", cell by cell: `e3seven`."""
SCENE_WORDS = tuple(f"{place}{colour}{shape}" for place in range(1, 10) for colour in COLOURS for shape in SHAPES)
"""Shorthand for "this thing is in this place", place by place in the order of `PLACES`: `2redcircle`."""
LATER_WORDS: tuple[str, ...] = ()
"""Words that were added after the first shipped weights, oldest first."""


def _unique(*groups: tuple[str, ...]) -> tuple[str, ...]:
    """Single words of all groups in order of first appearance."""
    return tuple(dict.fromkeys(word for group in groups for phrase in group for word in phrase.split()))


VOCABULARY = _unique(
    tuple(SPECIAL.values()),
    MARKS,
    TAGS,
    PUNCTUATION,
    DIGITS,
    NUMERALS,
    tuple(COLOURS),
    SHAPES,
    GLYPHS,
    TEXTURES,
    GROUND_PATTERNS,
    tuple(GROUNDS),
    SIZES,
    DIRECTIONS,
    PLACES,
    FUNCTION_WORDS,
    CELLS,
    BOARD_WORDS,
    SCENE_WORDS,
    LATER_WORDS,
)
"""All tokens; the position is the token id."""
