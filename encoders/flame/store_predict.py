"""A store written by `mm predict`: the text tower as a Lightning module, the captions as its data.

    mm predict --config flame/embed --data.captions captions.csv --data.store captions.store --ckpt none

One prediction is one shard, so that the bytes are those of `mm flame embed` with the same batch size. On several GPUs
or nodes every process takes its own shards (`--trainer.devices 8`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule

from mm.data import CaptionTable
from mm.encoders.flame.store_writer import SHARD_CAPTIONS, embed_rows, ready_tower, store_job
from mm.encoders.flame.tower import TextTowerConfig


class CaptionEmbedding(LightningModule):
    """Embeds captions with a frozen text tower.

    Args:
        text: Which language model, and how it is asked.
        template: Name of the template: long, short or single.
        batch_size: Captions per pass.
        dtype: float16, bfloat16 or float32; none given keeps that of the weights.
    """

    def __init__(
        self,
        text: TextTowerConfig | None = None,
        template: str = "long",
        batch_size: int = 32,
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        self.text = text or TextTowerConfig()
        self.template, self.batch_size = template, batch_size
        self.tower = ready_tower(self.text, dtype=dtype)
        self.tower.facets(template)  # an unknown template is refused before anything runs

    def predict_step(self, batch: list[str], batch_idx: int) -> dict[str, Any]:
        """Embed the captions of one shard; see `FeatureWriter`."""
        return {"keys": batch, "features": embed_rows(self.tower, batch, self.template, batch_size=self.batch_size)}


class CaptionStoreData(LightningDataModule):
    """Captions that the store does not hold yet, as shards of this process.

    Args:
        captions: A table of captions, see `mm.data.CaptionTable`.
        store: Folder of the store.
        column: Column of the captions; none given finds it.
        shard_items: Captions per shard.
        workers: Loading processes.
    """

    def __init__(
        self,
        captions: str,
        store: str,
        column: str | None = None,
        shard_items: int = SHARD_CAPTIONS,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.captions, self.store, self.column = captions, store, column
        self.shard_items, self.workers = shard_items, workers

    def predict_dataloader(self) -> Any:
        """One batch per shard.

        Raises:
            ValueError: the store was begun with another text tower, or the model is none.
        """
        trainer = self.trainer
        assert trainer is not None
        module = trainer.lightning_module
        if not isinstance(module, CaptionEmbedding):
            raise ValueError(
                f"CaptionStoreData feeds CaptionEmbedding (model: flame_embed), got {type(module).__name__}"
            )
        job = store_job(
            self.store,
            CaptionTable(self.captions, caption=self.column).captions(),
            module.tower,
            module.template,
            about=asdict(module.text),
            shard_items=self.shard_items,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        return job.loader(list, batch_size=self.shard_items, workers=self.workers)
