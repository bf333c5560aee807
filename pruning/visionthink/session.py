"""A batch of conversations with one cache: pieces of any length are appended, and nothing is computed twice.

Rows may have grown by different amounts; what a row lacks is hidden by the attention mask and takes up no position. All
positions are handed to the model, so that no state of its `generate` is involved.
Dims: B rows, n new tokens, T cached tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mm.pruning.visionthink.looks import Look


class Piece(NamedTuple):
    """What is appended to one row."""

    embeddings: Tensor
    """(n, D)."""
    axes: Tensor
    """Positions from the start of the piece, (3, n)."""
    extent: int
    """Positions that the piece takes up."""


class Session:
    """Conversations in progress on a Qwen2-VL or Qwen2.5-VL.

    Args:
        model: The model, in evaluation mode.
        rows: Conversations in the batch.
    """

    def __init__(self, model: nn.Module, rows: int) -> None:
        from transformers import DynamicCache

        core: Any = model
        self.embed, self.language, self.head = core.get_input_embeddings(), core.model.language_model, core.lm_head
        self.cache = DynamicCache(config=core.config.get_text_config())
        device = next(core.parameters()).device
        self.mask = torch.zeros(rows, 0, dtype=torch.bool, device=device)  # (B, T)
        self.next = torch.zeros(rows, dtype=torch.int64, device=device)  # (B,) the next free position
        self.computed = torch.zeros(rows, dtype=torch.int64, device=device)  # (B,) tokens that ran through the model

    def piece(self, ids: Sequence[int], looks: Sequence[Look], image_token: int) -> Piece:
        """Token ids with one image token per picture -> embeddings and positions.

        Raises:
            ValueError: another number of image tokens than pictures.
        """
        if list(ids).count(image_token) != len(looks):
            raise ValueError(f"{list(ids).count(image_token)} image tokens for {len(looks)} pictures")
        table = self.embed(torch.tensor(list(ids), device=self.mask.device))  # (n, D)
        parts, axes, start, left = [], [], 0, iter(looks)
        for token, row in zip(ids, table, strict=True):
            if token == image_token:
                look = next(left)
                parts.append(look.features.to(table.dtype))
                axes.append(look.axes + start)
                start += look.extent
            else:
                parts.append(row[None])
                axes.append(torch.full((3, 1), start, device=table.device))
                start += 1
        return Piece(torch.cat(parts), torch.cat(axes, 1), start)

    def extend(self, pieces: Sequence[Piece]) -> Tensor:
        """Append one piece to every row; logits behind the last token of each, (B, V)."""
        lengths = torch.tensor([len(piece.embeddings) for piece in pieces], device=self.mask.device)
        longest = int(lengths.max())
        sample = pieces[0].embeddings
        embeddings = sample.new_zeros(len(pieces), longest, sample.shape[1])  # (B, n, D), padded on the left
        positions = torch.ones(3, len(pieces), longest, dtype=torch.int64, device=self.mask.device)
        for row, piece in enumerate(pieces):
            at = slice(longest - len(piece.embeddings), None)
            embeddings[row, at] = piece.embeddings
            positions[:, row, at] = piece.axes + self.next[row]
        real = torch.arange(longest, device=self.mask.device) >= (longest - lengths)[:, None]  # (B, n)
        self.next = self.next + torch.tensor([piece.extent for piece in pieces], device=self.mask.device)
        return self._run(embeddings, positions, real)

    def step(self, ids: Tensor, alive: Tensor) -> Tensor:
        """Append one token (B,) to the rows that are alive (B,); logits behind it, (B, V)."""
        positions = self.next.expand(3, 1, -1).transpose(1, 2)  # (3, B, 1)
        self.next = self.next + alive.long()
        return self._run(self.embed(ids)[:, None], positions, alive[:, None])

    def select(self, rows: Sequence[int]) -> None:
        """Keep some rows only, in the given order."""
        index = torch.tensor(list(rows), device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask, self.next, self.computed = self.mask[index], self.next[index], self.computed[index]

    def _run(self, embeddings: Tensor, positions: Tensor, real: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, real], 1)
        self.computed = self.computed + real.sum(1)
        out = self.language(
            inputs_embeds=embeddings,
            attention_mask=self.mask.long(),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = self.head(out.last_hidden_state[:, -1])
        return logits.float()
