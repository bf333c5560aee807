"""Token pairs as bits: every id takes log2 of its vocabulary, rounded up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def bits_of(vocab: int) -> int:
    """Bits of one id: 15 for 32768, 13 for 8192."""
    return max((vocab - 1).bit_length(), 1)


def pack_pairs(tokens: NDArray[np.int64], vocabs: tuple[int, int]) -> bytes:
    """Pairs (N, 2) as bytes, most significant bit first, semantic before acoustic; the last byte is filled with zeros.

    Raises:
        ValueError: an id outside its vocabulary.

    Example:
        >>> pack_pairs(np.array([[5, 1], [2, 0]]), (8, 2)).hex()
        'b4'
    """
    tokens = np.asarray(tokens, dtype=np.int64).reshape(-1, 2)
    for name, ids, vocab in zip(("semantic", "acoustic"), tokens.T, vocabs, strict=True):
        if len(ids) and not (ids.min() >= 0 and ids.max() < vocab):
            raise ValueError(f"{name} tokens must lie in 0..{vocab - 1}, got {ids.min()}..{ids.max()}")
    columns = [_bits(ids, bits_of(vocab)) for ids, vocab in zip(tokens.T, vocabs, strict=True)]
    return np.packbits(np.concatenate(columns, axis=1).reshape(-1)).tobytes()


def unpack_pairs(data: bytes, count: int, vocabs: tuple[int, int]) -> NDArray[np.int64]:
    """The first `count` pairs of packed bytes, (count, 2).

    Raises:
        ValueError: fewer bytes than that many pairs take.
    """
    first, second = (bits_of(vocab) for vocab in vocabs)
    if len(data) < packed_size(count, vocabs):
        raise ValueError(f"{count} pairs take {packed_size(count, vocabs)} bytes, got {len(data)}")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * (first + second))
    table = bits.reshape(count, first + second).astype(np.int64)
    return np.stack([_number(table[:, :first]), _number(table[:, first:])], axis=1)


def packed_size(count: int, vocabs: tuple[int, int]) -> int:
    """Bytes of `count` packed pairs."""
    return -(-count * sum(bits_of(vocab) for vocab in vocabs) // 8)


def _bits(ids: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    return ((ids[:, None] >> np.arange(width - 1, -1, -1)) & 1).astype(np.uint8)


def _number(bits: NDArray[np.int64]) -> NDArray[np.int64]:
    return bits @ (1 << np.arange(bits.shape[1] - 1, -1, -1))
