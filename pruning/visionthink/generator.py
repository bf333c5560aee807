"""Answer from a first look; fetch the full picture when the model asks for it.

All conversations of a call run in one batch. Those that ask go on from their cache with the full picture, so that the
second turn computes nothing but its own tokens.
Dims: B conversations, V vocabulary.
Source: VisionThink (Yang et al. 2025, arXiv:2507.13348), sections 3.1 and 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from mm.pruning.base import Pruner
from mm.pruning.visionthink.format import extract_answer
from mm.pruning.visionthink.looks import Eye, FullLook, Look, Looker, open_looker
from mm.pruning.visionthink.packing import SpecialTokens, Trajectory, Turn
from mm.pruning.visionthink.protocol import CALL_TEXT, END, ToolProtocol
from mm.pruning.visionthink.resolution import ResolutionPolicy
from mm.pruning.visionthink.session import Piece, Session
from mm.pruning.visionthink.tool_call import CLOSE, OPEN, ToolCall, parse_tool_call
from mm.vision import load_image

Mode = Literal["auto", "never", "always"]
NEVER_WRITTEN = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
"""Tokens that would promise a picture that is not there."""


@dataclass
class AdaptiveAnswer:
    """One conversation and what it cost."""

    answer: str = ""
    """Text of the answer; empty where the model never gave one."""
    called: bool = False
    """Whether the full pictures were shown."""
    attempted: bool = False
    """Whether the model tried to call, validly or not."""
    finished: bool = False
    """Whether the model ended its last turn by itself and did not call in it."""
    tokens_low: int = 0
    """Visual tokens of the first look."""
    tokens_full: int = 0
    """Visual tokens of the full pictures, 0 if they were not shown."""
    tokens_reference: int = 0
    """Visual tokens of the full pictures, shown or not."""
    turns: list[str] = field(default_factory=list)
    """What the model wrote, turn by turn."""
    transcript: list[tuple[str, str]] = field(default_factory=list)
    """(role, text) of everything from the first user turn on."""
    computed: list[int] = field(default_factory=list)
    """Tokens that ran through the language model in each round."""
    trajectory: Trajectory | None = None
    """The conversation as token ids, ready for packing."""

    @property
    def retain_ratio(self) -> float:
        """Visual tokens spent over those of the full pictures alone."""
        return (self.tokens_low + self.tokens_full) / max(1, self.tokens_reference)


@dataclass
class _Row:
    """One conversation while it runs."""

    images: list[Image.Image]
    report: AdaptiveAnswer
    turns: list[Turn] = field(default_factory=list)
    call: ToolCall | None = None
    done: bool = False


class _Written(NamedTuple):
    """One turn of the model."""

    ids: list[int]
    ended: bool


class AdaptiveGenerator:
    """Runs conversations in which the model may ask for the full picture.

    Args:
        vlm: `Qwen2VLForConditionalGeneration` or `Qwen2_5_VLForConditionalGeneration`.
        processor: Its processor: a `tokenizer` and an `image_processor`.
        first_look: "half" (a quarter of the pixels), "full", a pruner such as `FlowCut(target_tokens=64)`, or a looker.
        mode: "auto" lets the model decide; "never" forbids the call; "always" writes the call for it.
        call_bias: Added to the logit of the first token of a call: positive asks more often, negative less.
        protocol: Texts and tags.
        policy: Sizes of first look and full picture.
        max_rounds: Turns of the model at most.
        max_new_tokens: Tokens per turn at most.
        temperature: 0 takes the most likely token; above, tokens are drawn.
        parser: Which calls count as valid, "release" or "strict".
        batch_size: Conversations that run together.

    Raises:
        ValueError: a model without dynamic resolution, a tokenizer without the tags of the chat, or an unknown option.

    Example:
        >>> gen = AdaptiveGenerator(model, processor, call_bias=1.0)  # doctest: +SKIP
        >>> gen("plan.png", "How wide is the door?").answer  # doctest: +SKIP
        '0.9 m'
    """

    def __init__(
        self,
        vlm: nn.Module,
        processor: Any,
        first_look: str | Pruner | Looker = "half",
        mode: Mode = "auto",
        call_bias: float = 0.0,
        *,
        protocol: ToolProtocol | None = None,
        policy: ResolutionPolicy | None = None,
        max_rounds: int = 2,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        parser: Literal["release", "strict"] = "release",
        batch_size: int = 16,
    ) -> None:
        if mode not in ("auto", "never", "always"):
            raise ValueError(f"unknown mode {mode!r}; choose auto, never or always")
        if max_rounds < 1 or max_new_tokens < 1 or batch_size < 1 or temperature < 0:
            raise ValueError("max_rounds, max_new_tokens and batch_size must be positive, temperature at least 0")
        self.vlm, self.tokenizer = vlm, processor.tokenizer
        self.eye = Eye(vlm, processor.image_processor)
        self.policy = policy or ResolutionPolicy.evaluation()
        self.first_look = open_looker(first_look, self.policy)
        self.full_look: Looker = FullLook(self.policy)
        self.mode, self.call_bias, self.protocol = mode, call_bias, protocol or ToolProtocol()
        self.max_rounds, self.max_new_tokens = max_rounds, max_new_tokens
        self.temperature, self.parser, self.batch_size = temperature, parser, batch_size
        self.tokens = _special_tokens(self.tokenizer, int(vlm.config.image_token_id), self.eye.merge)  # type: ignore
        self._open = self.tokenizer(OPEN, add_special_tokens=False).input_ids[0]
        closing = self.tokenizer(CLOSE, add_special_tokens=False).input_ids
        self._stops = [self.tokens.end, *(closing if len(closing) == 1 else [])]
        vocabulary = self.tokenizer.get_vocab()
        self._barred = [vocabulary[token] for token in NEVER_WRITTEN if token in vocabulary]

    @torch.inference_mode()
    def __call__(self, images: Any, questions: str | Sequence[str], seed: int = 0) -> Any:
        """Answer questions about pictures.

        Args:
            images: For one question a picture or a list of pictures; for several, one such entry per question.
            questions: One question or a list.
            seed: Of the draws, where the temperature is above 0.

        Returns:
            One `AdaptiveAnswer`, or a list of them in order.

        Raises:
            ValueError: no picture, another number of entries than questions, or an unreadable picture.
        """
        single = isinstance(questions, str)
        asked = [questions] if isinstance(questions, str) else list(questions)
        groups = [images] if single else list(images)
        if len(groups) != len(asked):
            raise ValueError(f"{len(asked)} questions, but pictures for {len(groups)}")
        pictures = [_pictures(group, index) for index, group in enumerate(groups)]
        generator = torch.Generator().manual_seed(seed)
        was_training = self.vlm.training
        self.vlm.eval()
        try:
            answers: list[AdaptiveAnswer] = []
            for start in range(0, len(asked), self.batch_size):
                here = slice(start, start + self.batch_size)
                answers += self._batch(pictures[here], asked[here], generator)
        finally:
            self.vlm.train(was_training)
        return answers[0] if single else answers

    def _batch(
        self, pictures: list[list[Image.Image]], questions: list[str], generator: torch.Generator
    ) -> list[AdaptiveAnswer]:
        rows = [_Row(group, AdaptiveAnswer()) for group in pictures]
        session = Session(self.vlm, len(rows))
        looks = self._looks(self.first_look, pictures)
        pieces = []
        for row, question, seen in zip(rows, questions, looks, strict=True):
            text = self.protocol.first_turn(question, len(row.images))
            ids = self.protocol.prompt_ids(question, self.tokenizer, len(row.images))
            row.report.transcript.append(("user", text))
            row.report.tokens_low = sum(len(look.features) for look in seen)
            row.report.tokens_reference = sum(self.eye.count(self.policy.pair(image)[1]) for image in row.images)
            row.report.trajectory = Trajectory(ids, [look.grid for look in seen], row.turns)
            pieces.append(session.piece(ids, seen, self.tokens.image))
        active = rows
        for round_index in range(self.max_rounds):
            logits = session.extend(pieces)
            written = self._write(session, logits, round_index, len(active), generator)
            for row, turn, count in zip(active, written, session.computed.tolist(), strict=True):
                row.report.computed.append(count - sum(row.report.computed))
                self._note(row, turn, last=round_index == self.max_rounds - 1)
            going = [index for index, row in enumerate(active) if not row.done]
            if not going:
                break
            session.select(going)
            active = [active[index] for index in going]
            pieces = self._observe(session, active)
        return [self._closed(row) for row in rows]

    def _looks(self, looker: Looker, pictures: Sequence[Sequence[Image.Image]]) -> list[list[Look]]:
        """All pictures of all conversations in one pass of the encoder."""
        found = iter(looker(self.eye, [image for group in pictures for image in group]))
        return [[next(found) for _ in group] for group in pictures]

    def _write(
        self, session: Session, logits: Tensor, round_index: int, rows: int, generator: torch.Generator
    ) -> list[_Written]:
        """One turn of the model for every conversation, token ids with their end marker."""
        if self.mode == "always" and round_index == 0:
            ids = list(self.tokenizer(f"{OPEN}\n{CALL_TEXT}\n{CLOSE}{END}", add_special_tokens=False).input_ids)
            session.extend([session.piece(ids, [], self.tokens.image)] * rows)
            return [_Written(ids, ended=True)] * rows
        written: list[list[int]] = [[] for _ in range(rows)]
        alive = torch.ones(rows, dtype=torch.bool, device=logits.device)
        for _ in range(self.max_new_tokens):
            token = self._pick(logits, generator)  # (B,)
            for row, (value, live) in enumerate(zip(token.tolist(), alive.tolist(), strict=True)):
                written[row] += [value] * live
            logits = session.step(token, alive)  # the token that ends a turn enters the cache, too
            alive = alive & ~torch.isin(token, torch.tensor(self._stops, device=token.device))
            if not alive.any():
                break
        return self._ended(session, written, alive)

    def _ended(self, session: Session, written: list[list[int]], alive: Tensor) -> list[_Written]:
        """Every turn with its end marker, in the text and in the cache."""
        end = self.tokens.end
        lacking = torch.tensor([ids[-1] != end for ids in written], device=session.mask.device)
        if lacking.any():
            session.step(torch.full((len(written),), end, device=session.mask.device), lacking)
        ended = (~alive).tolist()
        return [_Written(ids if ids[-1] == end else [*ids, end], e) for ids, e in zip(written, ended, strict=True)]

    def _pick(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        logits = logits.clone()
        logits[:, self._barred] = -torch.inf
        logits[:, self._open] += -torch.inf if self.mode == "never" else self.call_bias
        if self.temperature == 0:
            return logits.argmax(-1)
        p = (logits / self.temperature).softmax(-1).cpu()
        return torch.multinomial(p, 1, generator=generator)[:, 0].to(logits.device)

    def _note(self, row: _Row, turn: _Written, *, last: bool) -> None:
        """Take a turn in and decide whether the conversation goes on."""
        text = self.tokenizer.decode(turn.ids[:-1], skip_special_tokens=True)
        row.turns.append(Turn(turn.ids, generated=True))
        row.report.turns.append(text)
        row.report.transcript.append(("assistant", text))
        row.call = parse_tool_call(text, self.parser)
        asked = row.call.outcome != "finished"
        row.report.attempted |= asked
        row.report.finished = turn.ended and not asked
        row.done = last or not asked or row.report.called

    def _observe(self, session: Session, active: list[_Row]) -> list[Piece]:
        """What is appended to the conversations that go on: the full pictures, or why there are none."""
        wanting = [row for row in active if row.call is not None and row.call.outcome == "image"]
        found = self._looks(self.full_look, [row.images for row in wanting]) if wanting else []
        looks = {id(row): seen for row, seen in zip(wanting, found, strict=True)}
        pieces = []
        for row in active:
            seen = looks.get(id(row), [])
            error = row.call.error if row.call is not None else None
            text = self.protocol.error_turn(error) if error else self.protocol.image_turn(len(row.images))
            row.report.transcript.append(("user", text))
            ids = self.protocol.observation_ids(text, self.tokenizer)
            row.turns.append(Turn(ids, generated=False, grids=[look.grid for look in seen]))
            row.report.called |= bool(seen)
            row.report.tokens_full += sum(len(look.features) for look in seen)
            pieces.append(session.piece(ids, seen, self.tokens.image))
        return pieces

    def _closed(self, row: _Row) -> AdaptiveAnswer:
        last = row.report.turns[-1]
        row.report.answer = "" if parse_tool_call(last, self.parser).outcome != "finished" else extract_answer([last])
        return row.report


def _pictures(group: Any, index: int) -> list[Image.Image]:
    entries = list(group) if isinstance(group, (list, tuple)) else [group]
    if not entries or entries[0] is None:
        raise ValueError(f"question {index} has no picture; a first look needs one")
    return [load_image(entry, name=f"question {index}, picture {i}") for i, entry in enumerate(entries)]


def _special_tokens(tokenizer: Any, image: int, merge: int) -> SpecialTokens:
    """Ids that the loop needs.

    Raises:
        ValueError: the tokenizer does not know the end marker of the chat.
    """
    vocabulary = tokenizer.get_vocab()
    if END not in vocabulary:
        raise ValueError(f"the tokenizer does not know {END}; the protocol needs a chat model of the Qwen kind")
    pad = tokenizer.pad_token_id
    last = max(vocabulary.values())
    return SpecialTokens(
        end=vocabulary[END], pad=0 if pad is None else pad, image=image, last_allowed=last, merge=merge
    )
