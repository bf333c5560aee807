"""WebDataset shards (tar files) of sound to shards of tokens: `x.wav` becomes `x.stk`, everything else is copied."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mm.checkpoint import write_aside
from mm.codecs.semanticodec.audio import SUFFIXES
from mm.codecs.semanticodec.container import TokenFile, pack


def encode_shard(
    source: str | Path, out: str | Path, encode: Callable[[io.BytesIO, str], TokenFile]
) -> tuple[int, list[str]]:
    """Encode the sounds of one shard; the new shard appears when it is complete.

    Args:
        source: Tar file.
        out: Tar file to write.
        encode: (open file, its name) -> tokens.

    Returns:
        How many sounds were encoded, and a line for each that could not be (its sample keeps its other members).

    Raises:
        ValueError: not a tar file, or one that is cut off.
    """
    done, failed = 0, []
    try:
        with tarfile.open(source) as reader, write_aside(out) as temporary, tarfile.open(temporary, "w") as writer:
            for member in reader:
                content = reader.extractfile(member)
                if content is None:  # a folder or a link
                    continue
                data, path = content.read(), PurePosixPath(member.name)
                if path.suffix.lower() in SUFFIXES:
                    try:
                        data = pack(encode(io.BytesIO(data), f"{source}:{path}"))
                    except ValueError as error:
                        failed.append(str(error))
                        continue
                    path, done = path.with_suffix(".stk"), done + 1
                entry = tarfile.TarInfo(str(path))
                entry.size, entry.mtime = len(data), member.mtime
                writer.addfile(entry, io.BytesIO(data))
    except tarfile.TarError as error:
        raise ValueError(f"{source}: not a tar file that can be read to its end ({error})") from error
    return done, failed
