"""Token pairs for language models: one flat stream of ids with offsets and special ids, and back.

    id of a semantic token = specials + s            id of an acoustic token = specials + semantic vocabulary + a

The order is s0 a0 s1 a1 ...; with a delay of k the acoustic token of a pair stands k pairs later, so that a model may
write the semantic plan first.
Dims: B rows, N pairs, L ids per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mm.codecs.semanticodec.token_features import ABSENT

PAD, BEGIN, END = 0, 1, 2
SPECIALS = 3


@dataclass(frozen=True, kw_only=True)
class TokenVocabulary:
    """Ids of a language model over both kinds of tokens."""

    semantic: int
    """Semantic vocabulary."""
    acoustic: int
    """Acoustic vocabulary."""
    delay: int = 0
    """Pairs by which acoustic tokens come later."""

    @property
    def size(self) -> int:
        """Ids altogether."""
        return SPECIALS + self.semantic + self.acoustic

    def flatten(self, tokens: Tensor) -> Tensor:
        """Pairs (B, N, 2), rows ending in pairs of -1 -> ids (B, L): begin, the stream, end, then pad.

        Places that the delay leaves without a token hold the pad id.

        Raises:
            ValueError: another shape, or a token outside its vocabulary.

        Example:
            >>> TokenVocabulary(semantic=10, acoustic=4).flatten(torch.tensor([[[7, 1], [2, 3]]]))
            tensor([[ 1, 10, 14,  5, 16,  2]])
        """
        if tokens.ndim != 3 or tokens.shape[-1] != 2:
            raise ValueError(f"tokens must be (rows, pairs, 2), got {tuple(tokens.shape)}")
        return pad_sequence([self._flat(row) for row in tokens], batch_first=True, padding_value=PAD)

    def unflatten(self, ids: Tensor) -> Tensor:
        """The pairs that `flatten` made ids (B, L) of, (B, N, 2) with -1 behind the end of a row.

        Raises:
            ValueError: a row without begin or end, one that ends inside a pair, or a token of the wrong kind.
        """
        rows = [self._pairs(row, index) for index, row in enumerate(ids)]
        return pad_sequence(rows, batch_first=True, padding_value=ABSENT)

    def _flat(self, row: Tensor) -> Tensor:
        row = row[: int((row != ABSENT).any(-1).sum())]
        for name, found, size in (("semantic", row[:, 0], self.semantic), ("acoustic", row[:, 1], self.acoustic)):
            if len(row) and (int(found.min()) < 0 or int(found.max()) >= size):
                raise ValueError(f"{name} tokens must lie in 0..{size - 1}, got {int(found.min())}..{int(found.max())}")
        stream = row.new_full((len(row) + self.delay, 2), PAD)
        stream[: len(row), 0] = row[:, 0] + SPECIALS
        stream[self.delay :, 1] = row[:, 1] + SPECIALS + self.semantic
        return torch.cat([row.new_tensor([BEGIN]), stream.flatten(), row.new_tensor([END])])

    def _pairs(self, row: Tensor, index: int) -> Tensor:
        ends = (row == END).nonzero()
        if len(row) == 0 or int(row[0]) != BEGIN or len(ends) == 0:
            raise ValueError(f"row {index} must start with the begin id {BEGIN} and hold the end id {END}")
        stream = row[1 : int(ends[0])]
        if len(stream) % 2 or len(stream) < 2 * self.delay:
            raise ValueError(f"row {index} ends inside a pair: {len(stream)} ids between begin and end")
        stream = stream.reshape(-1, 2)
        count = len(stream) - self.delay
        pairs = torch.stack([stream[:count, 0], stream[self.delay :, 1] - self.semantic], dim=1) - SPECIALS
        wrong = (pairs < 0) | (pairs >= pairs.new_tensor([self.semantic, self.acoustic]))
        if bool(wrong.any()):
            place = int(wrong.any(1).nonzero()[0])
            raise ValueError(f"row {index}, pair {place}: an id of the wrong kind stands in this place")
        return pairs
