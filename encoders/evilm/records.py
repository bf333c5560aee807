"""Recorded videos for training: annotation rows, a few frames of each clip, and codes from a cache if there is one.

    mm video tokenize CLIPS --out codes/ --frames 16     # once, optional
    mm fit --config evilm/videos --data.config.train CLIPS --data.config.codes codes/

Frames are jittered in time: one per equal part of the clip, at a place drawn anew in every pass. With a code cache they
are drawn among the frames that were tokenised. Videos are decoded after shuffling, so memory holds batches, not clips.
Dims: B clips per batch and process, T frames, M frames in the code cache, S side in pixels, h = w codes along a side.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mm.codecs.semantic_vq.code_cache import CodeCache
from mm.data import VisualSample
from mm.data.folder_module import FolderConfig, FolderData, RecordStream
from mm.data.loading import Pass, TrackedLoader, pass_loader
from mm.data.reading import OnError, Reader, Record
from mm.data.video_files import VideoFiles
from mm.encoders.evilm.annotations import Layout, VideoRow, read_names, read_rows
from mm.training.video_features import frames_uint8
from mm.vision import ImagePreprocessing, read_video, sample_frames

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class VideoDataConfig:
    """Where videos and their annotations lie, and how they are loaded."""

    train: str = ""
    """Annotation file, or a folder of videos with text files of the same name (a caption per line)."""
    validation: str = ""
    """The same for validation."""
    test: str = ""
    """The same for the test."""
    train_split: str = ""
    """Part of the training file, where it knows several."""
    validation_split: str = ""
    """The same for validation."""
    test_split: str = ""
    """The same for the test."""
    videos: str = ""
    """Folder of the videos; default: beside the annotation file, or the folder itself."""
    names: str = ""
    """File of lines `FILE NAME` where annotations name videos differently from their files."""
    layout: Layout = "auto"
    """Of annotation files: msrvtt, msvd, didemo, webvid, qa, table, folder, or auto (by ending and keys)."""
    captions: Literal["one", "paragraph"] = "one"
    """Of a row with several: one, drawn anew in every pass; or a paragraph: some of them in a drawn order in training,
    all in order elsewhere (DiDeMo)."""
    codes: str = ""
    """Cache that `mm video tokenize FOLDER` wrote for the same folder of videos; none: batches hold no codes."""
    num_frames: int = 4
    """Frames per clip (T)."""
    image_size: int | None = None
    """Side of the frames in pixels (S); default: that of the model under training."""
    crop: Literal["center", "random"] = "center"
    """Which square of the frame is used; random needs online codes, because the cached ones are of the centre."""
    on_error: OnError = "raise"
    """Stop at a video that cannot be read, or log and count it."""
    shuffle: int = 10_000
    """Rows to shuffle among; 0 keeps the order of the file."""
    seed: int = 0
    """Seed of order, captions, frames and crops."""
    batch_size: int = 8
    """Clips per batch and process (B)."""
    workers: int = 0
    """Decoding processes."""
    train_batches: int = 1000
    """Batches that count as one epoch of the trainer."""

    def __post_init__(self) -> None:
        for name, least in (("num_frames", 1), ("batch_size", 1), ("train_batches", 1), ("workers", 0), ("shuffle", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.captions not in ("one", "paragraph") or self.crop not in ("center", "random"):
            raise ValueError(
                f"captions must be one or paragraph and crop center or random, got {self.captions} and {self.crop}"
            )
        if self.codes and self.crop == "random":
            raise ValueError("crop=random with cached codes: these are of the centre of the frames; use crop=center")


class VideoRecords(Reader):
    """Rows of annotations with their frames.

    Samples hold T frames, the caption in `text` (or `question` and `answer`), and in `meta` the video, the times of the
    frames and, with a cache, their `codes` (T, h, w) int64.

    Args:
        path: Annotation file or folder.
        config: How it is read.
        split: Part of the file.
        training: Draw frames, captions and crops; else evenly spaced frames, the first caption, the centre.
    """

    def __init__(self, path: str, config: VideoDataConfig, *, split: str = "", training: bool = False) -> None:
        super().__init__(path, on_error=config.on_error)
        self.config, self.split, self.training = config, split, training
        source = Path(path)
        if not source.exists():
            raise FileNotFoundError(f"{path}: no such annotation file or folder of videos")
        folder = config.videos or (source if source.is_dir() else source.parent)
        self.files = VideoFiles(folder, read_names(config.names) if config.names else None)
        self.codes = CodeCache(config.codes) if config.codes else None
        if self.codes is not None and self.codes.num_frames < config.num_frames:
            raise ValueError(
                f"{config.codes}: holds {self.codes.num_frames} frames of each video, num_frames={config.num_frames} "
                "are asked for; tokenise again with --frames"
            )

    def records(self) -> Iterator[Record]:
        for row in read_rows(self.name, self.config.layout, split=self.split):
            yield row.place, partial(self._sample, row, self.turn)

    def _sample(self, row: VideoRow, turn: int) -> VisualSample:
        draw = np.random.default_rng([self.config.seed, turn, zlib.crc32(row.place.encode())])
        path = self.files.find(row.video)
        frames, meta = self._frames(path, draw)
        text = "" if row.question else self._caption(row, draw)
        if self.training and self.config.crop == "random":
            frames = _random_square(frames, draw)
        meta |= {"video": row.video, "place": row.place}
        return VisualSample(list(frames), row.question, row.answer, text, meta)

    def _frames(self, path: Path, draw: np.random.Generator) -> tuple[np.ndarray, dict[str, Any]]:
        """(T, H, W, 3) and what is known about them."""
        seed = int(draw.integers(2**31)) if self.training else None
        rule: Literal["segment", "uniform"] = "segment" if self.training else "uniform"
        if self.codes is None:
            clip = read_video(path, self.config.num_frames, rule, seed=seed)
            chosen = list(range(self.config.num_frames))
        else:
            clip = read_video(path, self.codes.num_frames)
            chosen = sample_frames(self.codes.num_frames, self.config.num_frames, rule, seed=seed)
        for problem in clip.problems:
            logger.warning("%s: %s", clip.info.name, problem)
        meta: dict[str, Any] = {"times_s": clip.times_s[chosen].tolist()}
        if self.codes is not None:
            meta["codes"] = self._codes(path, clip.times_s)[chosen]
        return clip.frames[chosen], meta

    def _codes(self, path: Path, times_s: np.ndarray) -> Tensor:
        assert self.codes is not None
        try:
            found = self.codes.clip(path, self.files.folder)
        except KeyError as error:
            raise ValueError(error.args[0]) from error
        if not np.allclose(found.times_s.numpy(), times_s, atol=1e-3, equal_nan=True):
            raise ValueError(f"{path}: its frames are not at the times of the cached codes; tokenise it again")
        return found.codes

    def _caption(self, row: VideoRow, draw: np.random.Generator) -> str:
        if self.config.captions == "one":
            return row.captions[int(draw.integers(len(row.captions)))] if self.training else row.captions[0]
        if not self.training:
            return " ".join(row.captions)
        count = int(draw.integers(1, len(row.captions) + 1))
        return " ".join(row.captions[number] for number in draw.permutation(len(row.captions))[:count])


def _random_square(frames: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The same square of every frame, (T, H, W, 3) -> (T, s, s, 3) with s the short side."""
    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = int(draw.integers(height - side + 1)), int(draw.integers(width - side + 1))
    return frames[:, top : top + side, left : left + side]


class ClipBatch:
    """From samples to a batch.

    Captions become `input_ids` (B, X), cut at the model's limit with a log line; questions become `question_ids` (B, X)
    that end in `answer: [MASK]` and `answer_ids` (B), -100 where the answer is not one word of the tokenizer. Beside
    them stand `frames` (B, T, 3, S, S) uint8 and, with a cache, `codes` (B, T, h, w) int64.

    Args:
        tokenizer: Of the model.
        image_size: Side of the frames in pixels (S).
        max_text_len: Tokens that the model reads.

    Raises:
        ValueError: captions and questions in one batch, or a question longer than the limit.
    """

    def __init__(self, tokenizer: Any, *, image_size: int, max_text_len: int) -> None:
        self.tokenizer, self.max_text_len = tokenizer, max_text_len
        self.warned = False
        self.prepare = ImagePreprocessing(size=image_size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize="crop")

    def __call__(self, samples: Sequence[VisualSample]) -> dict[str, Tensor]:
        asked = [bool(sample.question) for sample in samples]
        if any(asked) and not all(asked):
            raise ValueError(f"{samples[asked.index(False)].meta['place']}: a caption among questions; separate them")
        batch = {"frames": torch.stack([frames_uint8(sample.images, self.prepare) for sample in samples])}
        if all("codes" in sample.meta for sample in samples):
            batch["codes"] = torch.stack([sample.meta["codes"] for sample in samples])
        if not all(asked):
            return batch | {"input_ids": self._captions(samples)}
        answers = torch.tensor([self._answer(sample.answer) for sample in samples])
        return batch | {"question_ids": self._questions(samples), "answer_ids": answers}

    def _captions(self, samples: Sequence[VisualSample]) -> Tensor:
        for sample in samples:
            length = len(self.tokenizer(sample.text).input_ids)
            if length > self.max_text_len:
                logger.warning("%s: %d tokens, cut at %d", sample.meta["place"], length, self.max_text_len)
        return self._ids([sample.text for sample in samples])

    def _questions(self, samples: Sequence[VisualSample]) -> Tensor:
        texts = [f"{sample.question} answer: {self.tokenizer.mask_token}" for sample in samples]
        for sample, text in zip(samples, texts, strict=True):
            length = len(self.tokenizer(text).input_ids)
            if length > self.max_text_len:  # cutting it would take the place of the answer away
                raise ValueError(f"{sample.meta['place']}: the question has {length} tokens, limit {self.max_text_len}")
        return self._ids(texts)

    def _ids(self, texts: list[str]) -> Tensor:
        self._warn_of_unknown_words(texts)
        found = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_text_len, return_tensors="pt")
        return found["input_ids"]  # type: ignore[no-any-return]

    def _warn_of_unknown_words(self, texts: list[str]) -> None:
        """Once: a tokenizer for other data than this makes one word of many."""
        unknown = self.tokenizer.unk_token_id
        text = next((text for text in texts if unknown in self.tokenizer(text).input_ids), None)
        if text is not None and not self.warned:
            self.warned = True
            logger.warning("the tokenizer does not know every word of %r; all such words are read alike", text)

    def _answer(self, answer: str) -> int:
        ids = self.tokenizer(answer, add_special_tokens=False).input_ids
        return int(ids[0]) if len(ids) == 1 and ids[0] != self.tokenizer.unk_token_id else -100


class VideoData(FolderData):
    """Lightning data module over annotated videos; training order and draws are resumed exactly.

    Args:
        config: Where everything lies.
        model: Whose tokenizer and sizes batches are made for; default: the model under training.

    Example:
        >>> VideoData(VideoDataConfig(train="clips")).clips.num_frames
        4
    """

    def __init__(self, config: VideoDataConfig, model: Any = None) -> None:
        super().__init__(
            FolderConfig(
                batch_size=config.batch_size,
                shuffle=config.shuffle,
                seed=config.seed,
                workers=config.workers,
                train_batches=config.train_batches,
            )
        )
        self.clips, self.model = config, model

    def reader(self, split: Literal["train", "validation", "test"]) -> VideoRecords:
        """The reader of one split.

        Raises:
            ValueError: the config does not name it.
            FileNotFoundError: it is not there.
        """
        path = getattr(self.clips, split)
        if not path:
            raise ValueError(f"no {split} data was named; set data.init_args.config.{split}")
        return VideoRecords(path, self.clips, split=getattr(self.clips, f"{split}_split"), training=split == "train")

    def clip_batch(self) -> ClipBatch:
        """Function from samples to a batch.

        Raises:
            ValueError: there is no model, or it has no tokenizer.
        """
        model = self.model
        if model is None and self.trainer is not None:
            model = getattr(self.trainer.lightning_module, "model", None)
        if getattr(model, "tokenizer", None) is None:
            raise ValueError("VideoData needs a model with a tokenizer: pass model=..., or train an EViLMModule")
        config = model.config
        size = self.clips.image_size or config.image_size
        return ClipBatch(model.tokenizer, image_size=size, max_text_len=config.max_text_len)

    def train_dataloader(self) -> DataLoader:
        stream = RecordStream(self.reader("train"), self.config, self.clip_batch(), rank=self.rank, world=self.world)
        stream.done = dict(self._restored)
        self._loader = TrackedLoader(stream, batches=self.clips.train_batches, workers=self.clips.workers)
        return self._loader

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return self._clips("validation") if self.clips.validation else []

    def test_dataloader(self) -> DataLoader:
        return self._clips("test")

    def predict_dataloader(self) -> DataLoader:
        return self._clips("test")

    def _clips(self, split: Literal["validation", "test"]) -> DataLoader:
        part = Pass(self.reader(split).part, self.clips.batch_size, self.clip_batch(), rank=self.rank, world=self.world)
        return pass_loader(part, workers=self.clips.workers)
