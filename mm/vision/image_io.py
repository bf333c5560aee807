"""Reading one picture from anything a user may hand over, as 8-bit RGB, or one clear sentence about what is wrong.

Transparent pictures are laid on white, 16-bit ones are scaled (not clipped) to 8 bits, the EXIF orientation is
applied, and a decompression bomb is refused from its header, before any pixel is decoded.
"""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 89_478_485
"""Default limit of a decoded picture: 1/4 GiB as 24-bit RGB, the limit Pillow itself warns at."""


def load_image(
    source: str | os.PathLike[str] | bytes | IO[bytes] | np.ndarray | Image.Image | Any,
    *,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> Image.Image:
    """Read one picture.

    Args:
        source: Path, encoded bytes, open binary file, array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8,
            bool or uint16, or a PIL picture. Of an animated file the first frame is read.
        max_pixels: Largest accepted width x height.
        name: What errors call the picture; default: the path, or the kind of `source`.

    Returns:
        The upright picture in mode "RGB".

    Raises:
        FileNotFoundError: a path that does not exist.
        ValueError: everything else that is wrong with it: empty, corrupt, truncated, too large, of a kind that is no
            picture. The message names the file.
    """
    if isinstance(source, str | os.PathLike):
        return _from_file(Path(source), max_pixels, name or str(source))
    if isinstance(source, Image.Image):
        name = name or str(getattr(source, "filename", "") or "PIL picture")
        return _decode(source, max_pixels, name)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels, name or f"array {source.shape}")
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_bytes(bytes(source), max_pixels, name or "picture bytes")
    if hasattr(source, "read"):
        return _from_bytes(source.read(), max_pixels, name or str(getattr(source, "name", "open file")))
    if hasattr(source, "__array__"):
        return _from_array(np.asarray(source), max_pixels, name or type(source).__name__)
    raise ValueError(
        f"{name or 'picture'}: cannot read a {type(source).__name__}; pass a path, bytes, array or PIL image"
    )


def _from_file(path: Path, max_pixels: int, name: str) -> Image.Image:
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such picture file")
    if path.is_dir():
        raise ValueError(f"{name}: is a folder, expected a picture file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({error.strerror or error})") from error
    return _from_bytes(data, max_pixels, name)


def _from_bytes(data: bytes, max_pixels: int, name: str) -> Image.Image:
    if not data:
        raise ValueError(f"{name}: the picture file is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit decides about size; metadata warnings help nobody
            image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: not a picture, or in a format that Pillow does not read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: {error}; more than any picture this toolkit reads") from error
    except Exception as error:  # damaged headers end in many untyped errors inside the format readers
        raise ValueError(f"{name}: corrupt picture file ({error})") from error
    return _decode(image, max_pixels, name)


def _from_array(array: np.ndarray, max_pixels: int, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    channels_ok = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not channels_ok or 0 in array.shape:
        raise ValueError(f"{name}: expected a non-empty (H, W), (H, W, 3) or (H, W, 4) array, got shape {array.shape}")
    if array.dtype == np.uint16:
        array = _to_eight_bits(array)
    elif array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise ValueError(f"{name}: expected a uint8, uint16 or bool array, got {array.dtype}; scale it to 0..255 first")
    return _decode(Image.fromarray(np.ascontiguousarray(array)), max_pixels, name)


def _decode(image: Image.Image, max_pixels: int, name: str) -> Image.Image:
    """Check the size, decode the pixels and bring them to upright RGB."""
    width, height = image.size
    if not width or not height:
        raise ValueError(f"{name}: the picture has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ValueError(
            f"{name}: {width} x {height} = {width * height} pixels, at most {max_pixels} are read "
            "(a possible decompression bomb); make it smaller or raise max_pixels"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about harmless metadata; damage raises
            image.load()
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # truncated and corrupt data end in many untyped errors inside the decoders
        raise ValueError(f"{name}: corrupt or truncated picture ({error})") from error
    return _to_rgb(upright, name)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image if type(image) is Image.Image else image.copy()
    if image.mode.startswith("I"):  # "I;16", "I;16B": 16-bit grey; "I": 32-bit integers
        return Image.fromarray(_to_eight_bits(_as_uint16(np.asarray(image), name))).convert("RGB")
    if image.mode == "F":
        raise ValueError(f"{name}: floating-point pixels have no fixed range; convert the picture to 8 bits first")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _as_uint16(values: np.ndarray, name: str) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{name}: 32-bit pixels from {values.min()} to {values.max()}, expected 0..65535")
    return values.astype(np.uint16)


def _to_eight_bits(values: np.ndarray) -> np.ndarray:
    """0..65535 -> 0..255, both ends kept (65535 / 255 = 257)."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
