"""From pictures to the tensor a vision tower expects: resize rule, interpolation, mean and standard deviation.

The rule travels with the weights in `preprocessor_config.json`, in the keys that Hugging Face image processors use,
so that either library reads the other's file.
Dims: B pictures, H height, W width (pixels).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from mm.vision.image_io import load_image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_HF_CLASS = {"squash": "SiglipImageProcessor", "crop": "CLIPImageProcessor", "pad": "LlavaImageProcessor"}


@dataclass(frozen=True, kw_only=True)
class ImagePreprocessing:
    """What a tower's pictures look like."""

    size: int | tuple[int, int] = 224
    """Side of the square input, or (height, width), in pixels."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Subtracted per channel, on the scale 0..1."""
    std: tuple[float, float, float] = CLIP_STD
    """Divided by per channel, on the scale 0..1."""
    resize: Literal["squash", "crop", "pad"] = "squash"
    """squash: both sides to `size`; crop: short side to `short_side`, then the centre; pad: to the aspect ratio of
    `size` with the mean colour (LLaVA-1.5), then squash."""
    short_side: int | None = None
    """Short side before the centre crop, pixels; None: the smaller side of `size`. Only with resize="crop"."""
    interpolation: Interpolation = "bicubic"
    """Resampling filter; "nearest" keeps hard-edged synthetic pictures exact."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"size must be positive, got {self.size}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive, got {self.std}")
        for name, value, known in (
            ("resize", self.resize, _HF_CLASS),
            ("interpolation", self.interpolation, RESAMPLING),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if self.short_side is not None and self.resize != "crop":
            raise ValueError(f"short_side={self.short_side} has a meaning only with resize='crop', got {self.resize!r}")
        if self.short_side is not None and self.short_side < max(self.height, self.width):
            raise ValueError(f"short_side={self.short_side} is smaller than the crop {self.height} x {self.width}")

    @property
    def height(self) -> int:
        """Rows of the input, pixels."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def width(self) -> int:
        """Columns of the input, pixels."""
        return self.size if isinstance(self.size, int) else self.size[1]

    def to_dict(self) -> dict[str, Any]:
        """Contents of `preprocessor_config.json`, also readable by Hugging Face image processors."""
        sides = {"height": self.height, "width": self.width}
        crop = self.resize != "squash"
        short_side = self.short_side or max(self.height, self.width)
        return {
            "image_processor_type": _HF_CLASS[self.resize],
            "do_convert_rgb": True,
            "do_pad": self.resize == "pad",
            "do_resize": True,
            "size": {"shortest_edge": short_side} if crop else sides,
            "resample": int(RESAMPLING[self.interpolation]),
            "do_center_crop": crop,
            "crop_size": sides,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "preprocessor_config.json") -> ImagePreprocessing:
        """Read what `to_dict` or a Hugging Face CLIP, SigLIP or LLaVA image processor wrote.

        Raises:
            ValueError: a rule that this processor cannot follow; nothing that changes pixels is ignored.
        """
        data = {key: value for key, value in data.items() if value is not None}  # null means "the default" there
        for key in ("image_mean", "image_std"):
            if key not in data and data.get("do_normalize", True):
                raise ValueError(f"{source}: {key} is missing; weights without their normalisation cannot be used")
        kind = str(data.get("image_processor_type", data.get("feature_extractor_type", "CLIPImageProcessor")))
        family = kind.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
        if family not in _HF_CLASS.values():
            raise ValueError(f"{source}: {kind} is not supported; supported: {', '.join(_HF_CLASS.values())}")
        if not data.get("do_resize", True):
            raise ValueError(f"{source}: do_resize=false leaves pictures of unequal size; set it to true")
        if data.get("do_rescale", True) and abs(data.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
            raise ValueError(f"{source}: rescale_factor {data['rescale_factor']} is not supported, expected 1/255")
        if not data.get("do_rescale", True):
            raise ValueError(f"{source}: do_rescale=false is not supported, expected true")
        normalize = data.get("do_normalize", True)
        return cls(
            **_read_sizes(data, family, source),
            mean=tuple(data["image_mean"]) if normalize else (0.0, 0.0, 0.0),
            std=tuple(data["image_std"]) if normalize else (1.0, 1.0, 1.0),
            interpolation=_read_resample(data.get("resample", 3), source),
        )


def _read_resample(code: int, source: str) -> Any:
    names = {int(value): key for key, value in RESAMPLING.items()}
    if code not in names:
        raise ValueError(f"{source}: resample={code} is not supported; supported: {names}")
    return names[code]


def _read_sizes(data: Mapping[str, Any], family: str, source: str) -> dict[str, Any]:
    """`size`, `resize` and `short_side` from Hugging Face's size dictionaries."""
    size = data.get("size", 224)
    if isinstance(size, int):  # files older than 2022
        size = {"height": size, "width": size} if family == "SiglipImageProcessor" else {"shortest_edge": size}
    crop = data.get("do_center_crop", family != "SiglipImageProcessor")
    target = data.get("crop_size", size) if crop else size
    if isinstance(target, int):
        target = {"height": target, "width": target}
    if "shortest_edge" in target:
        raise ValueError(f"{source}: size {target} without a centre crop leaves pictures of unequal size")
    sides = (int(target["height"]), int(target["width"]))
    square = sides[0] if sides[0] == sides[1] else sides
    if data.get("do_pad", False):
        if size.get("shortest_edge", sides[0]) != sides[0] or sides[0] != sides[1]:
            raise ValueError(f"{source}: do_pad needs one square size, got size={size}, crop_size={target}")
        return {"size": square, "resize": "pad"}
    if not crop:
        return {"size": square, "resize": "squash"}
    if "shortest_edge" not in size:
        if (size["height"], size["width"]) != sides:
            raise ValueError(f"{source}: squashing to {size} and then cropping to {target} is not supported")
        return {"size": square, "resize": "squash"}
    short_side = int(size["shortest_edge"])
    return {"size": square, "resize": "crop", "short_side": None if short_side == max(sides) else short_side}


class ImageProcessor:
    """Callable that turns pictures into `pixel_values`.

    Example:
        >>> processor = ImageProcessor(ImagePreprocessing(size=32))
        >>> processor([np.zeros((20, 40, 3), np.uint8)]).shape
        torch.Size([1, 3, 32, 32])
    """

    def __init__(self, preprocessing: ImagePreprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, images: Any) -> Tensor:
        """Preprocess one picture or several.

        Args:
            images: Whatever `mm.vision.load_image` reads, or an iterable of it.

        Returns:
            `pixel_values`, (B, 3, H, W) float32; B = 0 for an empty iterable.

        Raises:
            ValueError, FileNotFoundError: from `load_image`.
        """
        several = isinstance(images, Iterable) and not isinstance(images, str | bytes | np.ndarray | Image.Image)
        several = several and not hasattr(images, "read")
        pictures = [load_image(image) for image in (images if several else [images])]
        p = self.preprocessing
        if not pictures:
            return torch.empty(0, 3, p.height, p.width)
        pixels = torch.from_numpy(np.stack([np.asarray(self.resize(picture)) for picture in pictures]))
        mean, std = torch.tensor(p.mean), torch.tensor(p.std)
        return rearrange((pixels.float() / 255 - mean) / std, "b h w c -> b c h w").contiguous()

    def resize(self, picture: Image.Image) -> Image.Image:
        """RGB picture -> RGB picture of the input size, by the resize rule."""
        p = self.preprocessing
        filter_ = RESAMPLING[p.interpolation]
        if p.resize == "squash":
            return picture.resize((p.width, p.height), filter_)
        if p.resize == "pad":
            return pad_to_ratio(picture, p.width / p.height, p.mean).resize((p.width, p.height), filter_)
        short_side = p.short_side or max(p.height, p.width)
        scale_by = short_side / min(picture.size)
        # int() and not round(): the long side is cut down, as Hugging Face and torchvision do
        sides = [short_side if side == min(picture.size) else int(side * scale_by) for side in picture.size]
        left, top = (sides[0] - p.width) // 2, (sides[1] - p.height) // 2
        return picture.resize((sides[0], sides[1]), filter_).crop((left, top, left + p.width, top + p.height))

    def to_picture(self, pixel_values: Tensor) -> Image.Image:
        """Undo the normalisation of one picture, (3, H, W) -> RGB, for display."""
        mean, std = torch.tensor(self.preprocessing.mean), torch.tensor(self.preprocessing.std)
        pixels = rearrange(pixel_values.detach().float().cpu(), "c h w -> h w c") * std + mean
        return Image.fromarray((pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy())


def pad_to_ratio(picture: Image.Image, ratio: float, color: tuple[float, float, float]) -> Image.Image:
    """Centre a picture on a canvas of width / height = `ratio`; `color` on the scale 0..1, rounded down (LLaVA)."""
    width, height = picture.size
    canvas_size = (max(width, round(height * ratio)), max(height, round(width / ratio)))
    if canvas_size == picture.size:
        return picture
    canvas = Image.new("RGB", canvas_size, tuple(int(channel * 255) for channel in color))
    canvas.paste(picture, ((canvas_size[0] - width) // 2, (canvas_size[1] - height) // 2))
    return canvas
