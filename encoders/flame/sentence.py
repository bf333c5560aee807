"""A frozen encoder language model (sentence-transformers layout) as text tower: one embedding per caption.

Such a model has no slot to write an answer into: it reads the caption as it is, without template, and gives the mean of
its token states. Every template name therefore has one facet.
Dims: B captions, N tokens, D width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from mm.checkpoint import read_json
from mm.encoders.flame.fingerprint import digest, numbers_of
from mm.encoders.flame.text import checked_captions, finish

logger = logging.getLogger(__name__)

Pooling = Literal["mean", "cls"]
TEMPLATES = ("long", "short", "single")
POOLINGS: dict[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


class SentenceTextEncoder(nn.Module):
    """Sentence embeddings of a frozen encoder model.

    Args:
        model: A Hugging Face encoder that returns `last_hidden_state`.
        tokenizer: Its fast tokenizer.
        pooling: "mean" over real tokens, or "cls": the first token.
        max_tokens: Most tokens of a caption, special ones included; longer ones are cut with a warning.
        prompt: Put in front of every caption.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, pooling: Pooling = "mean", max_tokens: int = 512, prompt: str = ""
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be 'mean' or 'cls', got {pooling!r}")
        self.model: Any = model.requires_grad_(False).eval()
        self.tokenizer, self.pooling, self.max_tokens, self.prompt = tokenizer, pooling, max_tokens, prompt

    @classmethod
    def from_folder(cls, path: str | Path) -> SentenceTextEncoder:
        """Read a sentence-transformers folder, or the folder of a plain encoder model (mean pooling).

        Raises:
            FileNotFoundError: no such folder.
            ValueError: a pooling or a further module that this class does not have.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of a sentence model")
        inner, pooling = _modules(folder)
        common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        model = AutoModel.from_pretrained(str(inner), **common)
        tokenizer = AutoTokenizer.from_pretrained(str(inner), **common)
        return cls(model, tokenizer, pooling=pooling, max_tokens=_max_tokens(inner, model), prompt=_prompt(folder))

    @property
    def width(self) -> int:
        """Channels of an embedding (D)."""
        return int(self.model.config.hidden_size)

    def facets(self, template: str) -> int:
        """One embedding per caption.

        Raises:
            ValueError: unknown template.
        """
        if template not in TEMPLATES:
            raise ValueError(f"unknown template {template!r}; there are: {', '.join(TEMPLATES)}")
        return 1

    def fingerprint(self) -> str:
        """Short hexadecimal name of everything that decides an embedding."""
        settings: dict[str, Any] = {
            "pooling": self.pooling,
            "max_tokens": self.max_tokens,
            "prompt": self.prompt,
        }
        settings["config"] = numbers_of(self.model.config)
        return digest(settings, self.model.state_dict().items(), self.tokenizer)

    def train(self, mode: bool = True) -> SentenceTextEncoder:
        """Stays in evaluation mode: the tower is frozen."""
        return super().train(False)

    @torch.no_grad()
    def encode(
        self,
        captions: Sequence[str],
        template: str = "long",
        reduce: Literal["mean"] | None = None,
        normalize: bool = False,
        batch_size: int = 32,
    ) -> Tensor:
        """Embed captions; arguments and errors as `FacetTextEncoder.encode`, with K = 1.

        Returns:
            (B, 1, D), or (B, D) with `reduce`.
        """
        if reduce not in (None, "mean"):
            raise ValueError(f"reduce must be None or 'mean', got {reduce!r}")
        facets, rows = self.facets(template), self._tokenized(checked_captions(captions))
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        parameter = next(self.model.parameters())
        found = parameter.new_empty(len(rows), facets, self.width)
        for first in range(0, len(rows), batch_size):
            part = order[first : first + batch_size]
            batch = self.tokenizer.pad({"input_ids": [rows[index] for index in part]}, return_tensors="pt")
            found[part, 0] = self._pooled(batch.to(parameter.device))
        return finish(found, reduce, normalize)

    def _tokenized(self, captions: Sequence[str]) -> list[list[int]]:
        rows = []
        for caption in captions:
            text = self.prompt + caption
            ids = self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
            if len(ids) == self.max_tokens and len(self.tokenizer(text, verbose=False)["input_ids"]) > len(ids):
                logger.warning("a caption was cut to %d tokens: %r …", self.max_tokens, caption[:60])
            rows.append(ids)
        return rows

    def _pooled(self, batch: Any) -> Tensor:
        """(B, N, D) -> (B, D) over real tokens."""
        hidden = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        real = batch["attention_mask"][..., None].to(hidden.dtype)  # (B, N, 1)
        return (hidden * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def is_sentence_folder(path: str | Path) -> bool:
    """Whether a folder has the sentence-transformers layout."""
    return (Path(path) / "modules.json").is_file()


def _modules(folder: Path) -> tuple[Path, Pooling]:
    """Folder of the transformer and the pooling, by `modules.json`.

    Normalisation at the end needs nothing: `normalize` says whether it is wanted.
    """
    if not is_sentence_folder(folder):
        return folder, "mean"
    inner, pooling = folder, None
    for entry in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
        kind, place = str(entry["type"]).rpartition(".")[2], folder / entry["path"]
        if kind == "Transformer":
            inner = place
        elif kind == "Pooling":
            pooling = _pooling(place)
        elif kind != "Normalize":
            raise ValueError(
                f"{folder}/modules.json: module {kind} is not supported; Transformer, Pooling, Normalize are"
            )
    if pooling is None:
        raise ValueError(f"{folder}/modules.json: no Pooling module, so it is unknown what the embedding is")
    return inner, pooling


def _pooling(place: Path) -> Pooling:
    settings = read_json(place / "config.json")
    chosen = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    if not chosen and isinstance(settings.get("pooling_mode"), str):
        chosen = [
            f"pooling_mode_{settings['pooling_mode']}_token" + ("s" if settings["pooling_mode"] == "mean" else "")
        ]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise ValueError(f"{place}: pooling {', '.join(chosen) or 'none'} is not supported; {', '.join(POOLINGS)} are")
    return POOLINGS[chosen[0]]


def _max_tokens(inner: Path, model: Any) -> int:
    stated = inner / "sentence_bert_config.json"
    limit: Any = read_json(stated).get("max_seq_length") if stated.is_file() else None
    return int(limit or getattr(model.config, "max_position_embeddings", 512))


def _prompt(folder: Path) -> str:
    stated = folder / "config_sentence_transformers.json"
    settings = read_json(stated) if stated.is_file() else {}
    name = settings.get("default_prompt_name")
    return str(settings.get("prompts", {}).get(name, "")) if name else ""
