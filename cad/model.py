"""OpenECAD: a vision-language model that answers a picture of a part with the program that builds it.

Any `mm.vlm.VisionLanguageModel` can play the part, the released TinyLLaVA checkpoints among them (`OpenECAD.adopt`);
this class adds the way from a picture to candidate programs. Source: paper section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mm.cad.manner import PUBLISHED, Manner
from mm.cad.seeing import as_seen
from mm.checkpoint import CONFIG_FILE, load, read_json, resolve
from mm.vision import load_image
from mm.vlm import VisionLanguageModel

CONSTRAINED_ROOM = 640
"""Room under the grammar, tokens: it must hold the shortest program even if every character is a token."""


@dataclass(frozen=True)
class Candidate:
    """One program that the model proposes."""

    text: str
    """As generated."""
    confidence: float
    """Geometric mean of the probabilities of its tokens, 0..1."""


class OpenECAD(VisionLanguageModel):
    """Picture of a part -> program text."""

    manner: Manner = Manner()
    """How it is asked; that of the tiny model unless it was adopted."""
    _trie: Any = None
    """The tokenizer's pieces as the constraint reads them; made when first needed."""

    @classmethod
    def adopt(cls, model: VisionLanguageModel, manner: Manner = PUBLISHED) -> OpenECAD:
        """A trained host of `mm.vlm` as an OpenECAD model; the parts are shared, nothing is copied.

        Args:
            model: With a tokenizer, for instance what `VisionLanguageModel.from_pretrained` made of a TinyLLaVA folder.
            manner: How it was taught to be asked.
        """
        tokenizer = model.processor.tokenizer
        adopted = cls(model.config, tokenizer=tokenizer, tower=model.tower, backbone=model.backbone)
        adopted.projector = model.projector
        adopted.manner = manner
        return adopted.train(model.training)

    @property
    def picture_size(self) -> int:
        """Side of the pictures it reads, pixels."""
        return self.tower.image_size[0]

    def see(self, picture: Any) -> Any:
        """What the tower gets of a picture, RGB; (size, size, 3) uint8 where it is shown in grey."""
        if not self.manner.grey:
            return load_image(picture)
        levels = as_seen(picture, self.picture_size)
        return levels[..., None].repeat(3, axis=-1)

    def propose(
        self,
        pictures: Sequence[Any],
        *,
        samples: int = 0,
        temperature: float = 0.7,
        seed: int = 0,
        constrained: bool = False,
        max_new_tokens: int | None = None,
        **options: Any,
    ) -> list[list[Candidate]]:
        """Candidate programs for each picture, the greedy one first.

        Args:
            pictures: Files, arrays or PIL images.
            samples: Further programs per picture, drawn at `temperature`.
            temperature: Of the samples.
            seed: Of the samples.
            constrained: Only tokens that the grammar allows; every text is then a whole program.
            max_new_tokens: Longest answer, tokens; a longer one is cut; None: as the model's manner says. Constrained
                programs have more room.
            options: Further generation options.

        Raises:
            ValueError: a picture that cannot be read or shows nothing.
        """
        seen = [self.see(picture) for picture in pictures]
        max_new_tokens = max_new_tokens or self.manner.max_new_tokens
        if constrained:
            max_new_tokens = max(max_new_tokens, CONSTRAINED_ROOM)
        options["constrained"] = constrained
        found = [[candidate] for candidate in self._decode(seen, max_new_tokens, do_sample=False, **options)]
        if samples:
            repeated = [picture for picture in seen for _ in range(samples)]
            drawn: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                more = self._decode(repeated, max_new_tokens, **drawn, **options)
            for index, candidates in enumerate(found):
                candidates += more[index * samples : (index + 1) * samples]
        return found

    @torch.inference_mode()
    def _decode(
        self, pictures: Sequence[Any], max_new_tokens: int, *, constrained: bool, **options: Any
    ) -> list[Candidate]:
        if constrained:
            options["logits_processor"] = [self._constraint(max_new_tokens)]
        training = self.training
        self.eval()
        try:
            batch = self.prepare([[picture] for picture in pictures], [self.manner.question] * len(pictures))
            result: Any = self.generate(
                **batch, max_new_tokens=max_new_tokens, output_scores=True, return_dict_in_generate=True, **options
            )
        finally:
            self.train(training)
        confidence = self._confidence(result.sequences, torch.stack(result.scores, dim=1))
        texts = self.processor.tokenizer.batch_decode(result.sequences, skip_special_tokens=True)
        return [Candidate(text, float(value)) for text, value in zip(texts, confidence, strict=True)]

    def _constraint(self, max_new_tokens: int) -> Any:
        """A fresh constraint: it remembers where the rows of one generation began."""
        from mm.cad.decoding import ProgramConstraint, TokenTrie

        tokenizer = self.processor.tokenizer
        if self._trie is None:
            self._trie = TokenTrie(tokenizer)
        manner = self.manner
        return ProgramConstraint(
            tokenizer,
            style=manner.style,
            head=manner.head,
            tail=manner.tail,
            max_new_tokens=max_new_tokens,
            trie=self._trie,
        )

    def _confidence(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Geometric mean of the chosen tokens' probabilities, padding left out, (B,)."""
        log_probs = scores.float().log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0]  # (B, n)
        real = ids != self.processor.pad_token_id
        return (log_probs.masked_fill(~real, 0).sum(dim=1) / real.sum(dim=1).clamp(min=1)).exp()


def finished(name: str, *, device: str | torch.device = "cpu") -> OpenECAD:
    """A trained model, by a shipped name, a folder or a hub id; other hosts are adopted.

    Raises:
        FileNotFoundError: nothing under that name.
        ValueError: another kind of model, or one without a tokenizer.
    """
    model = trained_host(name, device=device)
    return model if isinstance(model, OpenECAD) else OpenECAD.adopt(model)


def trained_host(name: str, *, device: str | torch.device = "cpu") -> VisionLanguageModel:
    """A trained host of this toolkit in its own class, or of a published layout (TinyLLaVA, LLaVA).

    Raises:
        FileNotFoundError: nothing under that name.
        ValueError: another kind of model, or one without a tokenizer to read programs with.
    """
    folder = resolve(name)
    ours = "model_class" in read_json(folder / CONFIG_FILE)
    model = load(folder, device=device) if ours else VisionLanguageModel.from_pretrained(folder, device=device)
    if not isinstance(model, VisionLanguageModel):
        raise ValueError(
            f"{name}: a {type(model).__name__} is no tower, projector and language model; use openecad_tiny, a folder "
            "that mm fit trained, or one in TinyLLaVA's layout"
        )
    if model.processor.eos_token_id is None:
        raise ValueError(f"{name}: the tokenizer has no end-of-text token; a program could not be ended")
    return model
