"""Pictures of a whole batch, one behind the other, as rows of visual tokens: one row per sample, padded.

Dims: B samples, T pictures (images, tiles or frames) of the batch, P most pictures of a sample, n tokens per picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PicturePacking:
    """Where each of T pictures goes in a (B, P) table."""

    row: Tensor
    """Sample of each picture, (T,) int64."""
    column: Tensor
    """Place of each picture among those of its sample, (T,) int64."""
    shape: tuple[int, int]
    """(B, P)."""
    full: bool
    """Every sample has P pictures, so that nothing is padded."""

    @classmethod
    def from_counts(
        cls, num_pictures: int, batch_size: int, counts: Tensor | None, device: torch.device
    ) -> PicturePacking:
        """Plan for `counts` (B,) pictures per sample; None: all samples have the same number. Reads `counts` once.

        Raises:
            ValueError: the counts do not belong to this batch, or to this number of pictures.
        """
        if counts is None:
            if num_pictures % batch_size:
                raise ValueError(
                    f"{num_pictures} pictures cannot be shared out evenly to {batch_size} samples; give visual_counts"
                )
            numbers = [num_pictures // batch_size] * batch_size
        else:
            numbers = [int(number) for number in counts.tolist()]
        if len(numbers) != batch_size:
            raise ValueError(f"visual_counts has {len(numbers)} entries for a batch of {batch_size} samples")
        if sum(numbers) != num_pictures or min(numbers) < 0:
            raise ValueError(
                f"visual_counts {numbers} sums to {sum(numbers)}, but pixel_values holds {num_pictures} pictures"
            )
        repeats = torch.tensor(numbers, device=device)
        row = torch.arange(batch_size, device=device).repeat_interleave(repeats, output_size=num_pictures)
        column = torch.arange(num_pictures, device=device) - (repeats.cumsum(0) - repeats)[row]
        return cls(row, column, (batch_size, max(numbers)), len(set(numbers)) == 1)

    def tokens(self, features: Tensor) -> Tensor:
        """Features of the pictures (T, n, D) -> rows (B, P*n, D), zeros on padding."""
        if self.full:
            return rearrange(features, "(b p) n d -> b (p n) d", b=self.shape[0])
        table = features.new_zeros(*self.shape, *features.shape[1:])
        return rearrange(table.index_put((self.row, self.column), features), "b p n d -> b (p n) d")

    def mask(self, tokens_per_picture: int) -> Tensor | None:
        """True where a token is real, (B, P*n) bool; None when nothing is padded."""
        if self.full:
            return None
        table = torch.zeros(self.shape, dtype=torch.bool, device=self.row.device)
        real = table.index_put((self.row, self.column), torch.ones_like(self.row, dtype=torch.bool))
        return repeat(real, "b p -> b (p n)", n=tokens_per_picture)

    def ids(self, per_picture: Tensor, tokens_per_picture: int) -> Tensor:
        """An id per picture (T,) -> one per token (B, P*n), 0 on padding."""
        table = torch.zeros(self.shape, dtype=torch.long, device=self.row.device)
        placed = table.index_put((self.row, self.column), per_picture.long())
        return repeat(placed, "b p -> b (p n)", n=tokens_per_picture)
