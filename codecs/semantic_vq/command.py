"""`mm video tokenize`: one video to semantic codes in an `.npz` file, or a folder of videos to a cache for training."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.command import FAILED, OK, CommandParser, emit_json, emit_table, own_device, positive, progress, share

if TYPE_CHECKING:
    import argparse

    from mm.codecs.semantic_vq.tokenizer import SemanticVQTokenizer

logger = logging.getLogger(__name__)
EXAMPLE = "mm video tokenize CLIP.mp4 --output codes.npz\n  mm video tokenize FOLDER --out codes/ --frames 16"
ABOUT = """Semantic codes of evenly spaced frames. Any container that FFmpeg reads; long files are sampled by seeking.

CLIP    the file holds `codes` (T, h, w), `times_s` (T,) and the tokenizer's config as JSON
FOLDER  a cache of all videos below it, which training reads. Run it again after an interruption or with more videos:
        only what is missing is computed. Under torchrun or SLURM every process takes its own shards."""
CLIP_FRAMES, FOLDER_FRAMES = 4, 16


def tokenize(argv: list[str]) -> int:
    """Codes of a video or of a folder."""
    parser = CommandParser("video tokenize", about=ABOUT, example=EXAMPLE, json_output=True)
    parser.add_argument("clip", metavar="CLIP|FOLDER", help="video file, or a folder of videos")
    parser.add_argument(
        "--model",
        default="semantic_vq_tiny",
        help="tokenizer: a shipped name (default: semantic_vq_tiny), a folder, a hub id, or a VQ-KD .pth file",
    )
    parser.add_argument(
        "--frames", type=positive, help=f"frames per video (default: {CLIP_FRAMES}, of a folder {FOLDER_FRAMES})"
    )
    parser.add_argument(
        "-o",
        "--output",
        "--out",
        metavar="PATH",
        help="where to write (default: name of CLIP with _codes.npz, or _codes)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    folder = parser.add_argument_group("a folder of videos")
    folder.add_argument("--batch-size", type=positive, default=8, help="videos per pass (default: 8)")
    folder.add_argument("--shard-items", type=positive, default=256, help="videos per shard (default: 256)")
    folder.add_argument("--workers", type=int, default=0, help="decoding processes (default: 0)")
    folder.add_argument("--parquet", metavar="FILE", help="also write where each video lies, as a Parquet table")
    arguments = parser.parse_args(argv)
    return _folder(arguments) if Path(arguments.clip).is_dir() else _clip(arguments)


def _clip(arguments: argparse.Namespace) -> int:
    if arguments.parquet:
        raise ValueError(f"--parquet is about a folder of videos, {arguments.clip} is none")

    from mm.vision import ImageProcessor, read_video

    clip = read_video(arguments.clip, arguments.frames or CLIP_FRAMES)
    model = load_tokenizer(arguments.model).to(arguments.device)
    pixels = ImageProcessor(model.image_preprocessing)(list(clip.frames))
    codes = model.encode(pixels.to(arguments.device)).cpu()
    output = Path(arguments.output or f"{Path(arguments.clip).stem}_codes.npz")
    write_codes(output, codes.numpy(), clip.times_s, model)
    usage = model.usage_of(codes)
    result = {
        "clip": clip.info.name,
        "frames": len(codes),
        "codes_per_frame": int(codes[0].numel()),
        "first_s": float(clip.times_s[0]),
        "last_s": float(clip.times_s[-1]),
        "different_codes": len(codes.unique()),
        "perplexity": usage.perplexity,
        "output": str(output),
    }
    if arguments.json:
        emit_json(result | {"problems": list(clip.problems)})
    else:
        emit_table([result])
        for problem in clip.problems:
            print(f"note: {problem}")
    return OK


def _folder(arguments: argparse.Namespace) -> int:
    from mm.codecs.semantic_vq.code_cache import codes_job, tokenize_videos
    from mm.data.video_files import video_files
    from mm.training.feature_cache import FeatureCache
    from mm.training.video_features import video_note

    folder = Path(arguments.clip)
    found = video_files(folder)
    output = Path(arguments.output or f"{folder.resolve().name}_codes")
    model = load_tokenizer(arguments.model).to(own_device(arguments.device))
    rank, world = share()
    job, files = codes_job(
        model,
        found,
        folder,
        output,
        num_frames=arguments.frames or FOLDER_FRAMES,
        about=arguments.model,
        shard_items=arguments.shard_items,
        rank=rank,
        world=world,
    )
    batches = sum(-(-len(task.keys) // arguments.batch_size) for task in job.tasks)
    now = tokenize_videos(
        model,
        job,
        files,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        progress=progress(f"tokenising {len(job):,} videos", batches),
    )
    cache = FeatureCache(output)
    notes = {key: video_note(cache, key) for key in files if key in cache}
    unreadable = [key for key, state in notes.items() if not state.good]
    result: dict[str, Any] = {
        "folder": str(folder),
        "videos": len(files),
        "tokenised_now": now,
        "unreadable": len(unreadable),
        "frames": job.identity["num_frames"],
        "process": f"{rank} of {world}",
        "output": str(output),
    }
    if arguments.parquet:
        cache.write_parquet(arguments.parquet)
        result["parquet"] = arguments.parquet
    problems = {key: state.note for key, state in notes.items() if state.note}
    if arguments.json:
        emit_json(result | {"problems": problems})
    else:
        emit_table([result])
        for key, note in problems.items():
            print(f"note: {key}: {note}")
    return FAILED if len(unreadable) == len(files) else OK


def load_tokenizer(name: str) -> SemanticVQTokenizer:
    """A tokenizer by its shipped name, from a folder, a hub id or a published `.pth` file.

    Raises:
        FileNotFoundError: nothing under that name.
        ValueError: something else under that name.
    """
    from mm.codecs.semantic_vq.convert import load_vqkd
    from mm.codecs.semantic_vq.tokenizer import SemanticVQTokenizer

    if name.endswith(".pth"):
        return load_vqkd(name)[0]
    return SemanticVQTokenizer.from_pretrained(name)


def write_codes(path: Path, codes: Any, times_s: Any, model: SemanticVQTokenizer) -> None:
    """Codes (T, h, w) as the smallest unsigned integers that hold the codebook, times, and the tokenizer's config."""
    import numpy as np

    from mm.checkpoint import write_aside

    kind = np.uint16 if model.config.quantizer.size <= 2**16 else np.uint32
    with write_aside(path) as temporary:
        with temporary.open("wb") as file:
            np.savez(file, codes=codes.astype(kind), times_s=times_s, config=json.dumps(asdict(model.config)))
