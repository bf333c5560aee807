"""Text embeddings that were computed once: for every caption K unit rows, one per facet, and their lengths before.

    store = FacetStore("captions.store")                 # written by `mm flame embed`
    store.rows(captions)                                 # (B, K, D) float16 unit rows
    store.rows(captions, picked)                         # (B, P, D): P facets of each
    store.embed(captions)                                # (B, D): as FacetTextEncoder.encode(..., reduce="mean")

A store is a feature cache (`mm.training.FeatureCache`) whose keys are the captions themselves.
Dims: B captions, K facets, P picked rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from mm.encoders.flame.store_rows import RowCodec, codec_of
from mm.training.feature_cache import IDENTITY_FILE, FeatureCache

if TYPE_CHECKING:
    from mm.encoders.flame.text import TextTower


def identity_of(tower: TextTower, template: str) -> dict[str, Any]:
    """What stored embeddings depend on: model, layer, wording, tokenizer (all in the fingerprint), and the template."""
    return {
        "text_tower": tower.fingerprint(),
        "template": template,
        "facets": tower.facets(template),
        "width": tower.width,
    }


class FacetStore:
    """Reads the embeddings of captions.

    Args:
        folder: What `mm flame embed` wrote.
        tower: Refuse the store unless it was built with this text tower.
        template: Refuse it unless it was built with this template.

    Attributes:
        facets: Rows per caption (K).
        width: Channels per row (D).
        template: Name of the template.

    Raises:
        FileNotFoundError: there is no store in the folder.
        ValueError: it was built with another language model, layer or template.
    """

    def __init__(self, folder: str | Path, *, tower: TextTower | None = None, template: str | None = None) -> None:
        self.folder = Path(folder)
        if not (self.folder / IDENTITY_FILE).is_file():
            raise FileNotFoundError(
                f"{self.folder}: no embedding store there ({IDENTITY_FILE} is missing); build one with mm flame embed"
            )
        self.cache = FeatureCache(self.folder)
        self.identity: dict[str, Any] = self.cache.identity or {}
        if "text_tower" not in self.identity:
            raise ValueError(f"{self.folder}: holds other features than text embeddings; build a store: mm flame embed")
        self._refuse(tower, template)
        self.facets, self.width = int(self.identity["facets"]), int(self.identity["width"])
        self.template = str(self.identity["template"])
        self.codec: RowCodec = codec_of(self.folder, self.identity)

    def _refuse(self, tower: TextTower | None, template: str | None) -> None:
        from mm.training.feature_cache import refuse_other_identity

        wanted = dict(self.identity)
        if template is not None:
            wanted["template"] = template
        if tower is not None:
            wanted |= identity_of(tower, str(wanted["template"]))
        refuse_other_identity(self.folder, self.identity, wanted, self.cache.about)

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.cache)

    def __iter__(self) -> Iterator[str]:
        """Captions in the order of their shards."""
        return iter(self.cache)

    def __contains__(self, caption: object) -> bool:
        return caption in self.cache

    def rows(self, captions: Sequence[str], picked: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Unit rows of captions.

        Args:
            captions: To the letter as they were embedded.
            picked: Which facets of each, (B, P) int, from 0; None reads all.
            out: float16, written to and returned; only for a store of half floats.

        Returns:
            (B, K, D) or (B, P, D), float16.

        Raises:
            KeyError: a caption is not in the store.
            ValueError: its shard is damaged (named), or `out` does not fit.
        """
        if self.codec.kind == "half":
            return self.cache.gather(captions, "rows", picked, out)
        if out is not None:
            raise ValueError(f"{self.folder}: {self.codec.kind} rows are computed, they can't be read into out")
        return self.codec.decode({name: self.cache.gather(captions, name, picked) for name in self.codec.features})

    def norms(self, captions: Sequence[str]) -> Tensor:
        """Lengths of the rows before they were normalised, (B, K) float32."""
        return self.cache.gather(captions, "norms")

    def embed(self, captions: Sequence[str]) -> Tensor:
        """One unit vector per caption: the mean of the un-normalised facets, normalised, (B, D) float32.

        Up to the rounding of the rows this is what the text tower gives with `reduce="mean", normalize=True`.
        """
        raw = self.rows(captions).float() * self.norms(captions)[..., None]
        return F.normalize(raw.mean(dim=1), dim=-1)
