"""`mm codec`: sound files to tokens and back; single files, folders and shards."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mm.command import FAILED, OK, CommandParser, UsageError, emit_json, emit_table, progress_wanted

ABOUT = """Sound to discrete tokens and back.

mm codec encode IN OUT    a sound or video file, a folder or a tar shard -> .stk
mm codec decode IN OUT    .stk or a folder of them -> .wav
mm codec info FILE        what a .stk file, or a model, is"""
EXAMPLE = "mm codec encode in.wav out.stk && mm codec decode out.stk back.wav"
MODEL = "semanticodec_tiny"


def run(argv: list[str]) -> int:
    """Run `mm codec`."""
    verbs = {"encode": encode, "decode": decode, "info": info}
    if argv and argv[0] in verbs:
        return verbs[argv[0]](argv[1:])
    parser = CommandParser("codec", about=ABOUT, example=EXAMPLE)
    parser.add_argument("action", choices=list(verbs), help="what to do")
    parser.parse_args(argv[:1])
    return OK


def encode(argv: list[str]) -> int:
    """Sound to tokens."""
    parser = CommandParser(
        "codec encode",
        about="Encode sound or video files of any length, rate and channels. A folder is walked and mirrored, tar "
        "shards inside it keep their other members; outputs that exist are skipped, so a stopped run continues.",
        example="mm codec encode in.wav out.stk",
        json_output=True,
    )
    parser.add_argument("source", type=Path, help="sound or video file, folder, or .tar shard")
    parser.add_argument("out", type=Path, help="file (or folder) to write")
    parser.add_argument("--vocab", type=int, default=None, help="semantic vocabulary (default: the model's largest)")
    parser.add_argument("--length-mode", choices=("exact", "official"), default="exact", help="rule for token counts")
    parser.add_argument("--channel", choices=("mean", "first"), default="mean", help="which channel (default: mean)")
    parser.add_argument("--normalize", action="store_true", help="bring the peak to 0.5, keep the gain in the file")
    parser.add_argument("--batch", type=_positive, default=8, help="segments at once (default: 8)")
    _common(parser)
    arguments = parser.parse_args(argv)
    jobs = _jobs(arguments, _is_sound, lambda path: path.with_suffix(".tar" if path.suffix == ".tar" else ".stk"))

    from mm.codecs.semanticodec.files import EncodeOptions, encode_file

    codec = _load(arguments)
    options = EncodeOptions(
        semantic_vocab=arguments.vocab,
        length_mode=arguments.length_mode,
        channel=arguments.channel,
        normalize=arguments.normalize,
        segments_at_once=arguments.batch,
    )
    return _run(jobs, partial(_encode_one, codec, partial(encode_file, codec, options=options)), arguments)


def decode(argv: list[str]) -> int:
    """Tokens to sound."""
    parser = CommandParser(
        "codec decode",
        about="Decode token files to 16-kHz WAV, exactly as long as the recordings were.",
        example="mm codec decode out.stk back.wav --steps 25 --guidance 2",
        json_output=True,
    )
    parser.add_argument("source", type=Path, help=".stk file, or a folder of them")
    parser.add_argument("out", type=Path, help="file (or folder) to write")
    parser.add_argument("--steps", type=_positive, default=None, help="sampling steps (default: the model's, 25)")
    parser.add_argument("--guidance", type=float, default=None, help="classifier-free guidance, 1 is off (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: 0)")
    parser.add_argument("--sampler", choices=("ddim", "dpm++"), default="ddim", help="dpm++ needs 10 to 20 steps")
    parser.add_argument("--eta", type=float, default=None, help="noise of ddim, 0 to 1 (default: the model's, 1)")
    parser.add_argument("--recover", action="store_true", help="of a damaged file decode what precedes the damage")
    parser.add_argument("--force", action="store_true", help="decode tokens that another model made")
    parser.add_argument("--batch", type=_positive, default=16, help="windows at once (default: 16)")
    _common(parser)
    arguments = parser.parse_args(argv)
    jobs = _jobs(arguments, lambda path: path.suffix == ".stk", lambda path: path.with_suffix(".wav"))

    from mm.codecs.semanticodec.decoder import Sampling

    sampling = Sampling(
        steps=arguments.steps,
        guidance=arguments.guidance,
        seed=arguments.seed,
        sampler=arguments.sampler,
        eta=arguments.eta,
    )
    return _run(jobs, partial(_decode_one, _load(arguments), sampling, arguments), arguments)


def info(argv: list[str]) -> int:
    """What a token file or a model is."""
    parser = CommandParser(
        "codec info",
        about="Describe a token file, or a model (shipped name or folder).",
        example="mm codec info out.stk",
        json_output=True,
    )
    parser.add_argument("source", help=".stk file, shipped model name or model folder")
    parser.add_argument("--recover", action="store_true", help="describe what a damaged file still holds")
    arguments = parser.parse_args(argv)
    path = Path(arguments.source)
    found = _file_info(path, arguments.recover) if path.suffix == ".stk" else _model_info(arguments.source)
    emit_json(found) if arguments.json else emit_table([{"field": key, "value": str(found[key])} for key in found])
    return OK


# --- one file ----------------------------------------------------------------------------------------------------


def _encode_one(codec: Any, encode_file: Any, source: Path, out: Path) -> dict[str, Any]:
    if source.suffix == ".tar":
        from mm.codecs.semanticodec.shards import encode_shard

        count, failed = encode_shard(source, out, lambda file, name: encode_file(file, name=name))
        return {"sounds": count, "failed": failed}
    from mm.codecs.semanticodec.container import write_tokens

    tokens = encode_file(source)
    size = write_tokens(out, tokens).stat().st_size
    return {
        "seconds": tokens.duration_s,
        "pairs": len(tokens.tokens),
        "bytes": size,
        "kbps": 8 * size / tokens.duration_s / 1000,
    }


def _decode_one(codec: Any, sampling: Any, arguments: argparse.Namespace, source: Path, out: Path) -> dict[str, Any]:
    from mm.codecs.semanticodec.config import SAMPLE_RATE
    from mm.codecs.semanticodec.container import read_tokens
    from mm.codecs.semanticodec.files import decode_file

    tokens = read_tokens(source, recover=arguments.recover)
    samples = decode_file(codec, tokens, out, sampling, windows_at_once=arguments.batch, force=arguments.force)
    return {"seconds": samples / SAMPLE_RATE, "pairs": len(tokens.tokens)}


def _file_info(path: Path, recover: bool) -> dict[str, Any]:
    from mm.codecs.semanticodec.container import read_tokens

    tokens = read_tokens(path, recover=recover)
    size = path.stat().st_size
    return {
        "file": str(path),
        "seconds": tokens.duration_s,
        "pairs": len(tokens.tokens),
        "token_rate": tokens.token_rate,
        "semantic_vocab": tokens.semantic_vocab,
        "acoustic_vocab": tokens.acoustic_vocab,
        "samples": tokens.samples,
        "source_rate": tokens.source_rate,
        "gain": tokens.gain,
        "model": f"{tokens.model:08x}",
        "bytes": size,
        "kbps": 8 * size / tokens.duration_s / 1000 if tokens.samples else None,
    }


def _model_info(name: str) -> dict[str, Any]:
    from mm.codecs.semanticodec.codec import SemantiCodec

    codec = SemantiCodec.from_pretrained(name)
    return {
        "model": name,
        "sample_rate": codec.sample_rate,
        "token_rate": codec.token_rate,
        "semantic_vocabs": list(codec.semantic_vocabs),
        "acoustic_vocab": codec.acoustic_vocab,
        "kbps": {vocab: codec.bitrate_of(vocab) / 1000 for vocab in codec.semantic_vocabs},
        "parameters": sum(parameter.numel() for parameter in codec.parameters()),
        "fingerprint": f"{codec.fingerprint():08x}",
    }


# --- many files --------------------------------------------------------------------------------------------------


def _is_sound(path: Path) -> bool:
    from mm.codecs.semanticodec.audio import SUFFIXES

    return path.suffix.lower() in SUFFIXES or path.suffix == ".tar"


def _jobs(arguments: argparse.Namespace, wanted: Any, renamed: Any) -> list[tuple[Path, Path]]:
    """Pairs of input and output, those of this part of the work, without outputs that exist."""
    source, out = arguments.source, arguments.out
    part, parts = arguments.part
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if source.is_file():
        return [(source, out / renamed(source).name if out.is_dir() else out)]
    found = sorted(path for path in source.rglob("*") if path.is_file() and wanted(path))
    if not found:
        raise ValueError(f"{source}: holds no file of a kind that can be used here")
    jobs = [(path, out / renamed(path.relative_to(source))) for path in found]
    twice = [target for target, count in Counter(target for _, target in jobs).items() if count > 1]
    if twice:
        raise ValueError(f"two inputs would write {twice[0]}; rename one of them")
    return [job for job in jobs[part::parts] if arguments.overwrite or not job[1].exists()]


def _run(jobs: list[tuple[Path, Path]], work: Any, arguments: argparse.Namespace) -> int:
    """All jobs; one that fails is named and does not stop the others."""
    rows, failed = [], []
    single = arguments.source.is_file()
    for source, out in _with_progress(jobs):
        start = time.perf_counter()
        try:
            row = work(source, out)
        except (ValueError, OSError) as error:
            if single:
                raise
            failed.append(str(error))
            continue
        failed += row.pop("failed", [])
        rows.append({"file": str(source), "out": str(out), **row, "took_s": time.perf_counter() - start})
    if arguments.json:
        emit_json({"files": rows, "failed": failed})
    else:
        emit_table(rows)
        for line in failed:
            print(f"failed: {line}")
        if not single:
            print(f"{len(rows)} done, {len(failed)} failed")
    return FAILED if failed else OK


def _with_progress(jobs: list[tuple[Path, Path]]) -> Iterator[tuple[Path, Path]]:
    if len(jobs) < 2 or not progress_wanted():
        yield from jobs
        return
    from rich.console import Console
    from rich.progress import track

    tracked: Iterable[tuple[Path, Path]] = track(jobs, console=Console(stderr=True), description="files")
    yield from tracked


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=MODEL, help=f"shipped name, model folder or hub id (default: {MODEL})")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    parser.add_argument("--overwrite", action="store_true", help="of a folder: also make outputs that exist")
    parser.add_argument("--part", type=_part, default=(0, 1), metavar="I/N", help="of a folder: every N-th file from I")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _part(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"must look like 0/4 (the first of four), got {text}")
    return int(part), int(parts)


def _load(arguments: argparse.Namespace) -> Any:
    from mm.codecs.semanticodec.codec import SemantiCodec

    if arguments.out.is_dir() and arguments.source.is_dir() and arguments.out.resolve() == arguments.source.resolve():
        raise UsageError("IN and OUT are the same folder")
    return SemantiCodec.from_pretrained(arguments.model, device=arguments.device)
