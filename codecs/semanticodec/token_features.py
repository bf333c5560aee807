"""Decoder features of tokens, looked up only where a window asks for them.

An hour of features takes a gigabyte, an hour of tokens three megabytes.
Dims: B recordings, N token pairs, C = 2 D feature channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mm.codecs.semanticodec.acoustic import PADDED
from mm.codecs.semanticodec.encoder import SemantiCodecEncoder

ABSENT = -1
"""Both ids of a pair behind the end of its recording."""


class TokenFeatures:
    """Stands for the tensor [acoustic ; semantic] (B, N, C): a stretch is computed when it is sliced.

    Args:
        encoder: Holds the codebooks.
        tokens: (B, N, 2) int64, -1 behind the end of a row.
        vocab: Semantic vocabulary of the tokens; none takes the last.
    """

    def __init__(self, encoder: SemantiCodecEncoder, tokens: Tensor, vocab: int | None = None) -> None:
        self.encoder, self.vocab = encoder, vocab
        self.table = encoder.semantic.codebook(vocab)
        self.tokens = tokens.to(self.table.device)
        self.shape = torch.Size((*tokens.shape[:2], 2 * encoder.config.token_width))
        self.device, self.dtype = self.table.device, self.table.dtype

    def dim(self) -> int:
        """Axes of the tensor it stands for."""
        return 3

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: tuple[slice, slice]) -> Tensor:
        """Features of some rows and positions, -1 in all channels where there is no token."""
        tokens = self.tokens[index]
        absent = (tokens == ABSENT).all(-1)
        embedded = self.encoder.embed(tokens.masked_fill(absent[..., None], 0), vocab=self.vocab)
        return embedded.masked_fill(absent[..., None], PADDED)


def check_tokens(tokens: Tensor, encoder: SemantiCodecEncoder, vocab: int | None = None) -> None:
    """Refuse what cannot be decoded.

    Raises:
        ValueError: another shape or type, a row without tokens, -1 inside a row, ids outside their vocabularies.
    """
    if tokens.ndim != 3 or tokens.shape[-1] != 2 or tokens.is_floating_point():
        raise ValueError(f"tokens must be integers (B, N, 2), got {tokens.dtype} {tuple(tokens.shape)}")
    present = ~(tokens == ABSENT).all(-1)
    if len(tokens) == 0 or not bool(present.any(1).all()):
        raise ValueError("there is nothing to decode: a recording without tokens")
    if bool((present[:, 1:] & ~present[:, :-1]).any()):
        raise ValueError("pairs of -1 may only stand behind the last token of a row")
    sizes = (len(encoder.semantic.codebook(vocab)), encoder.quantizer.config.size)
    for name, ids, size in zip(("semantic", "acoustic"), tokens.unbind(-1), sizes, strict=True):
        bad = present & ((ids < 0) | (ids >= size))
        if bool(bad.any()):
            row, place = bad.nonzero()[0].tolist()
            raise ValueError(
                f"{name} token {int(ids[row, place])} (row {row}, position {place}) is outside 0..{size - 1}; "
                "were these tokens made with another model or vocabulary?"
            )
