"""`mm video tokenize`: frames of a video file to semantic codes in an `.npz` file."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.command import OK, CommandParser, UsageError, emit_json, emit_table

if TYPE_CHECKING:
    from mm.codecs.semantic_vq.tokenizer import SemanticVQTokenizer

EXAMPLE = "mm video tokenize CLIP.mp4 --model my-tokenizer --frames 4 --output codes.npz"
ABOUT = """Work with videos.

mm video tokenize CLIP   semantic codes of its frames, see `mm video tokenize --help`"""


def run(argv: list[str]) -> int:
    """Run `mm video`."""
    if argv and argv[0] == "tokenize":
        return tokenize(argv[1:])
    CommandParser("video", about=ABOUT, example=EXAMPLE).parse_args([word for word in argv if word in ("-h", "--help")])
    raise UsageError(
        f"mm video: unknown word {argv[0]!r}; known: tokenize" if argv else "mm video: name a word: tokenize"
    )


def tokenize(argv: list[str]) -> int:
    """Codes of a few frames of a video."""
    parser = CommandParser(
        "video tokenize",
        about="Semantic codes of evenly spaced frames. Any container that FFmpeg reads; long files are sampled by "
        "seeking. The result holds `codes` (T, h, w), `times_s` (T,) and the tokenizer's config as JSON.",
        example=EXAMPLE,
        json_output=True,
    )
    parser.add_argument("clip", metavar="CLIP", help="video file")
    parser.add_argument(
        "--model", required=True, help="tokenizer: a model folder, a hub id, or a published VQ-KD .pth file"
    )
    parser.add_argument("--frames", type=_positive, default=4, help="frames to tokenise (default: 4)")
    parser.add_argument("--output", metavar="FILE", help="file to write (default: CLIP's name with _codes.npz)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    arguments = parser.parse_args(argv)

    from mm.vision import ImageProcessor, read_video

    clip = read_video(arguments.clip, arguments.frames)
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


def load_tokenizer(name: str) -> SemanticVQTokenizer:
    """A tokenizer from a folder, a hub id or a published `.pth` file.

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


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)
