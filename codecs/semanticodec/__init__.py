"""SemantiCodec: semantic and acoustic audio tokens with a latent-diffusion decoder (arXiv:2405.00233).

codec = SemantiCodec.from_pretrained("semanticodec_tiny")
tokens = codec.encode(wave, sample_rate)     # (B, N, 2): semantic, acoustic
sound = codec.decode(tokens, steps=25)       # (B, 1, S) at 16 kHz
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "codec": ("SemantiCodec",),
    "config": ("SemantiCodecConfig", "paper", "tiny"),
    "container": ("TokenFile", "read_tokens", "write_tokens"),
    "decoder": ("Sampling", "SemantiCodecDecoder"),
    "encoder": ("SemantiCodecEncoder",),
    "files": ("EncodeOptions", "decode_file", "encode_file"),
    "official": ("load_official",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mm.codecs.semanticodec' has no attribute {name!r}")
    return getattr(import_module(f"mm.codecs.semanticodec.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
