"""Grammar-constrained generation: a language model that can only write programs.

    constraint = ProgramConstraint(tokenizer, style="official", max_new_tokens=1024)
    model.generate(**inputs, max_new_tokens=1024, logits_processor=[constraint])

Every token that would leave the language of `mm.cad.grammar` is forbidden, whatever the tokenizer's pieces are. When
the room runs out, the shortest completion is enforced, so that the text is a whole program also for a model that never
stops. `complete_program` finishes or cuts a text that was generated without the constraint.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from mm.cad.emitter import Style
from mm.cad.grammar import Grammar, State
from mm.cad.matchers import Number
from mm.cad.parser import parse
from mm.cad.program import Program

_REMEMBERED = 4096
"""Generation states kept; beams come back to them."""


class TokenTrie:
    """The pieces of a tokenizer, arranged by their characters.

    Args:
        tokenizer: Any Hugging Face tokenizer. Special tokens and pieces that are no whole characters are left out.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.texts = token_texts(tokenizer)
        self.root: dict[str, Any] = {}
        for token, text in enumerate(self.texts):
            node = self.root
            for letter in text:
                node = node.setdefault(letter, {})
            if text:
                node.setdefault("", []).append(token)
        self.letters = {text: token for token, text in enumerate(self.texts) if len(text) == 1}

    def allowed(self, state: State) -> list[int]:
        """Ids of all tokens that keep `state` inside the language."""
        found: list[int] = []
        stack = [(self.root, state)]
        while stack:
            node, here = stack.pop()
            for letter, child in node.items():
                after = here.step(letter) if letter else None
                if after is not None:
                    found += child.get("", ())
                    stack.append((child, after))
        return found

    def along(self, text: str) -> list[int]:
        """Ids of all tokens with which `text` begins, shortest first."""
        found, node = [], self.root
        for letter in text:
            if letter not in node:
                break
            node = node[letter]
            found += node.get("", ())
        return found


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The text that each token adds behind another one; "" for special and partial ones."""
    size, special = len(tokenizer), set(tokenizer.all_special_ids)
    anchor = next(i for i in range(size) if i not in special and str(tokenizer.decode([i])).strip().isalnum())
    lead = str(tokenizer.decode([anchor]))
    texts = tokenizer.batch_decode([[anchor, i] for i in range(size)], clean_up_tokenization_spaces=False)
    found = [text[len(lead) :] if text.startswith(lead) else "" for text in texts]
    return ["" if i in special or not text.isascii() else text for i, text in enumerate(found)]


class ProgramConstraint(LogitsProcessor):
    """Lets a model write programs of one style, then its end-of-text token.

    Args:
        tokenizer: The tokenizer of the model.
        style: "official" or "canonical"; the style the model was trained on.
        head: Text before the program, for instance "```python\\n"; "" if the prompt already ends with it.
        tail: Text after the program, for instance "```".
        max_new_tokens: Room of the answer, tokens; the program is brought to its end within it. None = no limit.
        max_extrudes: Longest program.

    Raises:
        ValueError: the tokenizer has no end-of-text token, or cannot write every character of a program.

    The processor remembers where each row began: use a new one (or `reset`) for every call of `generate`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        style: Style = "official",
        head: str = "",
        tail: str = "",
        max_new_tokens: int | None = None,
        max_extrudes: int = 64,
        trie: TokenTrie | None = None,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-text token; a program could not be ended")
        self.trie = trie or TokenTrie(tokenizer)
        needed = set('abcdefghijklmnopqrstuvwxyzACELPS0123456789_=()[],.-+*/"\n') | set(head + tail)
        needed |= set(" \t") if style == "official" else set()
        if missing := sorted(needed - set(self.trie.letters)):
            raise ValueError(f"the tokenizer has no single token for {', '.join(map(repr, missing))}")
        self.eos = int(tokenizer.eos_token_id)
        self.grammar = Grammar(style, max_extrudes=max_extrudes)
        self.head, self.tail, self.max_new_tokens = head, tail, max_new_tokens
        if (
            max_new_tokens is not None
            and (least := len(head + self.grammar.start().ending() + tail) + 1) > max_new_tokens
        ):
            raise ValueError(f"the shortest program may need {least} tokens, there is room for {max_new_tokens}")
        self.reset()

    def reset(self) -> None:
        """Forget the current generation."""
        self.prompt_length: int | None = None
        self._places: OrderedDict[tuple[int, ...], _Place] = OrderedDict()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Forbid every token that leaves the language.

        Args:
            input_ids: Prompt and answer so far, (B, N) integers.
            scores: Scores of the next token, (B, V).

        Returns:
            Scores with -inf for forbidden tokens, (B, V).
        """
        if self.prompt_length is None:
            self.prompt_length = input_ids.shape[1]
        masked = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids[:, self.prompt_length :].tolist()):
            allowed = self.next_tokens(tuple(ids))
            masked[row, allowed] = scores[row, allowed]
        return masked

    def next_tokens(self, answer: tuple[int, ...]) -> list[int]:
        """Ids that may follow an answer."""
        if self.eos in answer:
            return [self.eos]
        place = self._place(answer)
        left = None if self.max_new_tokens is None else self.max_new_tokens - len(answer)
        return place.tokens(self, left) or [self.eos]

    def _place(self, answer: tuple[int, ...]) -> _Place:
        if answer in self._places:
            self._places.move_to_end(answer)
            return self._places[answer]
        if not answer:
            place = _Place(self.head, self.grammar.start())
        else:
            place = self._place(answer[:-1]).after(self.trie.texts[answer[-1]], self.tail)
        self._places[answer] = place
        if len(self._places) > _REMEMBERED:
            self._places.popitem(last=False)
        return place


class _Place:
    """Where an answer stands: in the text before the program, in the program, or in the text after it."""

    def __init__(self, head: str, state: State, rest: str | None = None) -> None:
        self.head, self.state, self.rest = head, state, rest
        """`rest` is what is left of the text after the program; None before that."""

    def after(self, text: str, tail: str) -> _Place:
        """The place after more text, which must have been allowed."""
        if self.head:
            return _Place(self.head[len(text) :], self.state)
        if self.rest is None:
            state = self.state.advance(text)
            if state is not None:
                return _Place("", state)
        rest = tail if self.rest is None else self.rest
        return _Place("", self.state, rest[len(text) :])

    def tokens(self, constraint: ProgramConstraint, left: int | None) -> list[int]:
        """Allowed tokens with `left` tokens of room; none = the end."""
        trie, tail = constraint.trie, constraint.tail
        if self.head:
            return trie.along(self.head)
        if self.rest is not None:
            return trie.along(self.rest)
        found = trie.allowed(self.state)
        if self.state.complete:
            found += trie.along(tail) if tail else [constraint.eos]
        if left is None or left > _SLACK or left > len(self.state.ending()) + len(tail) + _GROWTH:
            return found
        # Every token is checked against the room it leaves: the ending may take one token per character.
        fits = _Fit(self.state, left - 2 - len(tail))
        return [t for t in found if t == constraint.eos or fits(trie.texts[t])] or self._shortest(constraint)

    def _shortest(self, constraint: ProgramConstraint) -> list[int]:
        ending = self.state.ending() + constraint.tail
        return constraint.trie.along(ending)[-1:] if ending else [constraint.eos]


class _Fit:
    """Whether the shortest ending after a token fits into the room (tokens, at one per character).

    A number has hundreds of continuations, and their endings differ only in padding: those that leave the value that
    would close the loop are judged by the first of them.
    """

    def __init__(self, state: State, room: int) -> None:
        self.state, self.room = state, room
        matcher = state.queue[0].matcher if state.queue else None
        self.number = matcher if isinstance(matcher, Number) else None
        self.inside: bool | None = None

    def __call__(self, text: str) -> bool:
        after = self.state.advance(text)
        if after is None:  # the text after the program
            return True
        if self.number is None or after.queue is not self.state.queue or self._ends_at_goal(after.partial):
            return len(after.ending()) <= self.room
        if self.inside is None:
            self.inside = len(after.ending()) + _PADDING <= self.room
        return self.inside

    def _ends_at_goal(self, partial: str) -> bool:
        """Whether the shortest number that begins like this closes the loop."""
        assert self.number is not None
        goal = self.number.goal
        return bool(goal) and float(partial + self.number.ending(partial)) == float(goal)


_SLACK = 1500
"""Room, in tokens, above which no ending can be too long."""
_GROWTH = 600
"""Characters by which one token can lengthen the ending: it may open a feature, a loop and a curve."""
_PADDING = 16
"""Characters by which a token inside a number can lengthen the ending."""


def complete_program(text: str) -> Program | None:
    """The program in an answer that may be cut off: whole if it parses, else its complete extrudes, else None."""
    try:
        return parse(text, recover=True)
    except ValueError:
        return None
