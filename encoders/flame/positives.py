"""Which texts stand beside a picture in one step: P of its stored rows, drawn anew in every epoch.

The rows of a picture, in a fixed order: the raw caption under the single template, the short one's facets, the long
one's facets (1 + 3 + 7 = 11 with the published templates). Facets are thereby the text augmentation.
Dims: N pairs, R rows per pair, P positives, D width.
Source: FLAME published code: 6 of 11 rows, uniform, without replacement.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm.encoders.flame.pairs import Captions
from mm.encoders.flame.text import TextTower

ORDER = (("raw", "single"), ("short", "short"), ("long", "long"))
"""Kind of caption and its template, in the order of the rows."""


def row_names(tower: TextTower) -> list[str]:
    """What each row is, for instance "long 3"."""
    return [f"{kind} {number + 1}" for kind, template in ORDER for number in range(tower.facets(template))]


def embed_captions(tower: TextTower, captions: Sequence[Captions], *, batch_size: int = 64) -> Tensor:
    """All rows of all captions, (N, R, D) float16, each of unit length; equal captions are embedded once."""
    parts = []
    for kind, template in ORDER:
        texts = [getattr(caption, kind) for caption in captions]
        unique = list(dict.fromkeys(texts))
        place = {text: index for index, text in enumerate(unique)}
        found = tower.encode(unique, template, normalize=True, batch_size=batch_size).half().cpu()
        parts.append(found[torch.tensor([place[text] for text in texts], dtype=torch.long)])
    return torch.cat(parts, dim=1)


def draw_positives(count: int, rows: int, positives: int, generator: torch.Generator) -> Tensor:
    """For each of `count` pairs P different row numbers, every choice equally likely, (count, P) int64.

    Raises:
        ValueError: more positives than rows.
    """
    if not 1 <= positives <= rows:
        raise ValueError(f"positives must lie in 1..{rows}, the rows that a pair has; got {positives}")
    return torch.rand(count, rows, generator=generator).argsort(dim=1)[:, :positives]


def take_rows(rows: Tensor, chosen: Tensor) -> Tensor:
    """(N, R, D) rows and (N, P) numbers -> (N, P, D)."""
    return rows.gather(1, chosen[..., None].expand(-1, -1, rows.shape[-1]))
