"""How one text embedding is written down: as half floats, as bytes with a scale, or as numbers of codewords.

    bytes per row of D channels: half 2 D + 4, int8 D + 8, product D / 8 + 4 with 8 channels per codeword
    (4 of them the length of the row before it was normalised)

Dims: ... any leading axes, D channels, M parts of a row, S channels of a part, C codewords per part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from mm.checkpoint import read_tensors, write_aside
from mm.kernels import nearest_code

CODEBOOKS_FILE = "codebooks.safetensors"
CODEWORDS = 256
"""Codewords per part, so that a number takes one byte."""


class RowCodec(Protocol):
    """A way to write rows down."""

    kind: str

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what is stored."""
        ...

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        """Unit rows (..., D) float -> what is stored of them, each with the same leading axes."""
        ...

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        """What was stored -> unit rows (..., D) float16."""
        ...

    def identity(self) -> dict[str, Any]:
        """What a reader must agree on."""
        ...


class HalfRows:
    """Rows in float16, as the authors store them.

    Example:
        >>> codec = HalfRows()
        >>> codec.decode(codec.encode(torch.tensor([[0.6, 0.8]]))).dtype
        torch.float16
    """

    kind = "half"
    features = ("rows",)

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        return {"rows": rows.half()}

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        return stored["rows"]

    def identity(self) -> dict[str, Any]:
        return {"rows": self.kind}


class Int8Rows:
    """Rows as signed bytes, scaled by their largest channel.

    Example:
        >>> codec = Int8Rows()
        >>> stored = codec.encode(torch.tensor([[0.6, -0.8]]))
        >>> stored["codes"].tolist(), codec.decode(stored).tolist()
        ([[95, -127]], [[0.5986328125, -0.80078125]])
    """

    kind = "int8"
    features = ("codes", "scale")

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        scale = rows.float().abs().amax(dim=-1).clamp(min=1e-12) / 127  # (...)
        return {"codes": (rows.float() / scale[..., None]).round().to(torch.int8), "scale": scale}

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        return F.normalize(stored["codes"].float() * stored["scale"].float()[..., None], dim=-1).half()

    def identity(self) -> dict[str, Any]:
        return {"rows": self.kind}


class ProductRows:
    """Rows cut into parts, each replaced by the number of its nearest codeword (product quantisation).

    Args:
        codebooks: Codewords of every part, (M, C, S) float; D = M * S.

    Source: Jégou, Douze, Schmid 2011, Product quantization for nearest neighbor search.
    """

    kind = "product"
    features = ("codes",)

    def __init__(self, codebooks: Tensor) -> None:
        self.codebooks = codebooks.half()

    @classmethod
    def fit(cls, rows: Tensor, *, part: int = 8, rounds: int = 12, seed: int = 0) -> ProductRows:
        """Find codewords by Lloyd's rounds on a sample of rows.

        Args:
            rows: (N, D) float; more than 256 of them, better some ten thousand.
            part: Channels per part (S); must divide D.
            rounds: Of assigning and averaging.
            seed: Of the first codewords, which are rows.

        Raises:
            ValueError: `part` does not divide D, or there are too few rows.
        """
        if rows.shape[1] % part or len(rows) < CODEWORDS:
            raise ValueError(
                f"product rows need a width that {part} divides and at least {CODEWORDS} rows to learn from, got "
                f"{tuple(rows.shape)}; choose --part, or int8 for a small store"
            )
        parts = rearrange(rows.float(), "n (m s) -> m n s", s=part).contiguous()
        first = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:CODEWORDS]
        return cls(torch.stack([lloyd(values, values[first], rounds) for values in parts]))

    @classmethod
    def load(cls, folder: Path) -> ProductRows:
        """Read the codewords of a store.

        Raises:
            FileNotFoundError, ValueError: the file is missing or damaged.
        """
        return cls(read_tensors(folder / CODEBOOKS_FILE)["codebooks"])

    def save(self, folder: Path) -> None:
        """Write the codewords into a store."""
        folder.mkdir(parents=True, exist_ok=True)
        with write_aside(folder / CODEBOOKS_FILE) as path:
            save_file({"codebooks": self.codebooks.contiguous()}, path)

    def encode(self, rows: Tensor) -> dict[str, Tensor]:
        parts = rearrange(rows.float(), "... (m s) -> m ... s", m=len(self.codebooks))
        found = [nearest_code(values, codes.float())[0] for values, codes in zip(parts, self.codebooks, strict=True)]
        return {"codes": torch.stack(found, dim=-1).to(torch.uint8)}  # (..., M)

    def decode(self, stored: Mapping[str, Tensor]) -> Tensor:
        codes = stored["codes"].long()
        part = torch.arange(codes.shape[-1]).expand_as(codes)
        return F.normalize(rearrange(self.codebooks[part, codes].float(), "... m s -> ... (m s)"), dim=-1).half()

    def identity(self) -> dict[str, Any]:
        parts, _, size = self.codebooks.shape
        words = hashlib.sha256(self.codebooks.contiguous().numpy().tobytes()).hexdigest()[:16]
        return {"rows": self.kind, "parts": parts, "part": size, "codewords": words}


def lloyd(values: Tensor, codes: Tensor, rounds: int) -> Tensor:
    """k-means: assign every value to its nearest codeword, move codewords to the mean of theirs.

    A codeword that nobody chose moves to the value that is worst served.

    Args:
        values: (N, S) float32.
        codes: First codewords, (C, S).
        rounds: How often.

    Returns:
        (C, S) float32.
    """
    for _ in range(rounds):
        chosen, distance = nearest_code(values, codes)
        sums = torch.zeros_like(codes).index_add_(0, chosen, values)
        counts = torch.bincount(chosen, minlength=len(codes))
        codes = sums / counts.clamp(min=1)[:, None]
        empty = (counts == 0).nonzero()[:, 0]
        codes[empty] = values[distance.argsort(descending=True, stable=True)[: len(empty)]]
    return codes


def codec_of(folder: Path, identity: Mapping[str, Any]) -> RowCodec:
    """The codec that a store was written with.

    Raises:
        ValueError: a kind that this version does not know.
    """
    kind = identity.get("rows")
    if kind == HalfRows.kind:
        return HalfRows()
    if kind == Int8Rows.kind:
        return Int8Rows()
    if kind == ProductRows.kind:
        return ProductRows.load(folder)
    raise ValueError(f"{folder}: rows of kind {kind!r} are unknown; known: half, int8, product")
