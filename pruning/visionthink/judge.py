"""Whether an answer is right: exactly, as a number, by a function, or by asking a language model.

A language model as judge sees question, truth and answer, never the picture; its replies are cached and asked for again
when they cannot be read. A judge that stays silent is a failure of its own kind, never a wrong answer: the group of the
rollout is dropped.
Source: VisionThink (Yang et al. 2025, arXiv:2507.13348), section 3.3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

TEMPERATURES = (0.0, 0.2, 0.4)
"""One attempt each."""

_SCORE = re.compile(r"score:\s*([01])\b", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?%?")
_SYSTEM = (
    "You compare an answer with the truth. Different wording and synonyms are fine; "
    "what counts is whether both say the same."
)
_USER = (
    "Question: {question}\nTruth: {truth}\nAnswer: {answer}\n\n"
    "Where the truth is open, the answer must carry its meaning without false statements. Where it is definite, "
    "the answer must agree with it; other units are fine. "
    "Reply with `Score: 1` if the answer is right and `Score: 0` if not."
)


class JudgeFailure(RuntimeError):
    """No readable reply from the judge after all attempts."""


def exact(question: str, truth: str, answer: str) -> bool:
    """Whether both are the same text, without regard to case, white space at the ends and a full stop."""
    return _plain(truth) == _plain(answer)


def numeric(question: str, truth: str, answer: str, tolerance: float = 1e-6) -> bool:
    """Whether the only number in both is the same within a relative tolerance; falls back to `exact` without one."""
    values = [_number(text) for text in (truth, answer)]
    if values[0] is None:
        return exact(question, truth, answer)
    return values[1] is not None and math.isclose(values[0], values[1], rel_tol=tolerance, abs_tol=tolerance)


class LanguageModelJudge:
    """Asks a language model, up to three times, and remembers what it said.

    Args:
        ask: `ask(system, user, temperature) -> reply`; may raise, which counts as an attempt.
        temperatures: One attempt per entry.

    Raises:
        JudgeFailure: (when called) no attempt gave a reply with a score; the last cause is named.
    """

    def __init__(self, ask: Callable[[str, str, float], str], temperatures: Sequence[float] = TEMPERATURES) -> None:
        self.ask, self.temperatures = ask, tuple(temperatures)
        self._seen: dict[tuple[str, str, str], bool] = {}

    def __call__(self, question: str, truth: str, answer: str) -> bool:
        key = (question, truth, answer)
        if key not in self._seen:
            self._seen[key] = self._decide(*key)
        return self._seen[key]

    def _decide(self, question: str, truth: str, answer: str) -> bool:
        user = _USER.replace("{question}", question).replace("{truth}", truth).replace("{answer}", answer)
        cause = "no attempt was allowed"
        for temperature in self.temperatures:
            try:
                reply = self.ask(_SYSTEM, user, temperature)
            except Exception as error:  # whatever a remote judge raises is a failed attempt
                cause = f"{type(error).__name__}: {error}"
                continue
            if _SCORE.search(reply):
                return bool(last_score(reply))
            cause = f"the reply {reply[:80]!r} holds no score"
        raise JudgeFailure(f"the judge gave no score in {len(self.temperatures)} attempts; last: {cause}")


def last_score(reply: str) -> float:
    """The last `Score: 0|1` of a reply, 0 without one."""
    found = _SCORE.findall(reply)
    return float(found[-1]) if found else 0.0


def any_digit_one(reply: str) -> float:
    """1 if the character 1 occurs anywhere: the published reading, which mistakes "10 % off" for a yes."""
    return float("1" in reply)


def _plain(text: str) -> str:
    return text.strip().rstrip(".").strip().casefold()


def _number(text: str) -> float | None:
    """The value of the only number of a text; percent signs count as hundredths."""
    found = _NUMBER.findall(text)
    if len(found) != 1:
        return None
    value = float(found[0].rstrip("%").replace(",", ""))
    return value / 100 if found[0].endswith("%") else value
