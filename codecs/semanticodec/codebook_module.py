"""The clustering stage: semantic codebooks from frozen features, every domain by itself, under the same trainer.

There is no gradient: batches are turned into features and kept, and at the end of the epoch k-means makes the codebooks
of all vocabularies. Set `trainer.max_epochs: 1` and `trainer.limit_train_batches`.
Source: SemantiCodec (arXiv:2405.00233), section III-A.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mm.codecs.semanticodec.kmeans import Start, train_codebooks
from mm.codecs.semanticodec.stage import CodecStage, start_codec
from mm.kernels import nearest_code


class CodebookModule(CodecStage):
    """Cluster the features of a codec.

    Batches hold `waves` and `domains` (B,), numbers that count through the domains of the codec's configuration.

    Args:
        codec: Weights with a trained feature extractor.
        preset: Sizes of a fresh codec (its random features give poor codebooks).
        seed: Of the starts, and of the weights of a fresh codec.
        chunk: Vectors per chunk of k-means (published: 2.56 million); features beyond whole chunks are left out.
        start: random (published) or plusplus.
        max_steps: Lloyd steps per codebook part.
    """

    def __init__(
        self,
        codec: str | None = None,
        preset: str = "semanticodec_tiny",
        seed: int = 0,
        chunk: int = 2_560_000,
        start: Start = "plusplus",
        max_steps: int = 100,
    ) -> None:
        super().__init__(start_codec(codec, preset, seed), [], None)
        self.automatic_optimization = False
        self.seed, self.chunk, self.start, self.max_steps = seed, chunk, start, max_steps
        self._kept: dict[str, list[Tensor]] = {}

    def configure_optimizers(self) -> None:
        """Nothing is optimised by gradients."""

    def on_train_epoch_start(self) -> None:
        """Forget the features of an earlier epoch."""
        self._kept = {name: [] for name in self.model.config.quantizer.domains}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:  # type: ignore[override]
        """Keep the features of a batch, by domain and without padding."""
        frames = self.model.bank(batch["waves"])
        features, keep = self.model.encoder.features(frames), self.model.encoder.keep(frames)
        for number, name in enumerate(self.model.config.quantizer.domains):
            rows = batch["domains"] == number
            self._kept[name].append(features[rows][keep[rows]].float())

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Cluster the features of all processes; every process finds the same codebooks."""
        pools = {name: self._gathered(torch.cat(parts)) for name, parts in self._kept.items()}
        shuffle = torch.Generator().manual_seed(self.seed)
        pools = {name: x[torch.randperm(len(x), generator=shuffle).to(x.device)] for name, x in pools.items()}
        found = train_codebooks(
            {name: lambda x=x: x.split(self.chunk) for name, x in pools.items()},  # type: ignore[misc]
            self.model.config.quantizer,
            seed=self.seed,
            start=self.start,
            max_steps=self.max_steps,
        )
        for codebook in found.values():
            self.model.encoder.semantic.fill(codebook)
        self._kept = {}

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Evaluation: mean squared distance to the nearest centre, relative to the spread of the features."""
        frames = self.model.bank(batch["waves"])
        features = self.model.encoder.features(frames)[self.model.encoder.keep(frames)].float()
        spread = features.var(0).sum()
        logs: dict[str, Tensor | float] = {}
        for vocab in self.model.semantic_vocabs:
            _, distance = nearest_code(features, self.model.encoder.semantic.codebook(vocab).float())
            logs[f"lost_{vocab}"] = distance.mean() / spread
        return torch.as_tensor(logs[f"lost_{self.model.semantic_vocabs[-1]}"]), logs

    def _gathered(self, x: Tensor) -> Tensor:
        """Rows of all processes, which may hold different numbers of them."""
        if self.trainer.world_size == 1:
            return x
        counts: Any = self.all_gather(torch.tensor(len(x), device=x.device))
        padded = x.new_zeros(int(counts.max()), x.shape[1])
        padded[: len(x)] = x
        rows: Any = self.all_gather(padded)
        return torch.cat([part[: int(count)] for part, count in zip(rows, counts, strict=True)])
