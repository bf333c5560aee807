"""Preprocessing: the numbers of Hugging Face's Pillow processors, and files that either library reads."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPImageProcessorPil, LlavaImageProcessorPil, SiglipImageProcessorPil

from mm.vision import ImagePreprocessing, ImageProcessor, TowerConfig, build_tower

HF = {"crop": CLIPImageProcessorPil, "squash": SiglipImageProcessorPil, "pad": LlavaImageProcessorPil}
SETTINGS = [
    ImagePreprocessing(size=32, resize="crop"),
    ImagePreprocessing(size=28, resize="crop", short_side=32, interpolation="bilinear"),
    ImagePreprocessing(size=32, resize="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ImagePreprocessing(size=(16, 32), resize="squash", interpolation="nearest"),
    ImagePreprocessing(size=32, resize="pad"),
]


@pytest.fixture(params=[(50, 70), (70, 50), (33, 33), (20, 61)], ids=str)
def picture(request):
    values = np.random.default_rng(0).integers(0, 256, (*request.param, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(request.param[::-1], Image.Resampling.BILINEAR)


@pytest.mark.parametrize("preprocessing", SETTINGS, ids=lambda p: f"{p.resize}-{p.size}")
def test_equals_the_pillow_processors_that_read_our_file(preprocessing, picture):
    ours = ImageProcessor(preprocessing)(picture)
    theirs = HF[preprocessing.resize](**preprocessing.to_dict())(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preprocessing", SETTINGS, ids=lambda p: f"{p.resize}-{p.size}")
def test_file_round_trip(preprocessing):
    assert ImagePreprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_reads_what_hugging_face_writes(picture):
    theirs = CLIPImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    read = ImagePreprocessing.from_dict(json.loads(theirs.to_json_string()))
    assert (read.size, read.short_side, read.resize, read.interpolation) == (32, 36, "crop", "bicubic")
    old = {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "do_center_crop": True}
    old |= {"resample": 3, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "do_normalize": True}
    assert ImagePreprocessing.from_dict(old).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize=false"),
        ({"rescale_factor": 1.0}, "rescale_factor 1.0 is not supported"),
        (
            {"image_processor_type": "Qwen2VLImageProcessor"},
            "Qwen2VLImageProcessor is not supported; supported: Siglip",
        ),
        ({"resample": 5}, "resample=5 is not supported"),
        ({"do_center_crop": False}, "leaves pictures of unequal size"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(change, message):
    data = ImagePreprocessing(size=32, resize="crop").to_dict() | change
    with pytest.raises(ValueError, match=rf"my\.json: .*{message}"):
        ImagePreprocessing.from_dict(data, source="my.json")


def test_pad_keeps_every_pixel_and_centres():
    picture = Image.new("RGB", (32, 16), "white")
    pixels = ImageProcessor(ImagePreprocessing(size=32, resize="pad", interpolation="nearest", mean=(0.0, 0.0, 0.0)))(
        picture
    )
    rows = pixels[0].amax(dim=(0, 2)) > 0
    assert rows.tolist() == [False] * 8 + [True] * 16 + [False] * 8


def test_nearest_keeps_synthetic_pixels_exact():
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    processor = ImageProcessor(ImagePreprocessing(size=32, interpolation="nearest"))
    assert np.array_equal(np.asarray(processor.to_picture(processor(values)[0])), values.repeat(4, 0).repeat(4, 1))


def test_one_several_and_no_pictures(tmp_path):
    processor = ImageProcessor(ImagePreprocessing(size=8))
    picture = Image.new("RGB", (9, 7), "red")
    picture.save(tmp_path / "a.png")
    batch = processor([picture, np.asarray(picture), tmp_path / "a.png"])
    assert batch.shape == (3, 3, 8, 8) and torch.equal(batch[0], batch[1]) and torch.equal(batch[0], batch[2])
    assert torch.equal(processor(str(tmp_path / "a.png")), batch[:1])
    assert processor(iter([])).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size": 0}, "size must be positive"),
        ({"std": (0.0, 1.0, 1.0)}, "std must be positive"),
        ({"resize": "stretch"}, "resize must be one of squash, crop, pad"),
        ({"short_side": 300}, "only with resize='crop'"),
        ({"short_side": 100, "resize": "crop"}, "smaller than the crop"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ImagePreprocessing(**kwargs)


def test_timm_preprocessing_is_taken_from_the_library():
    import timm

    from mm.vision import wrap_tower

    module = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=0)
    found = wrap_tower(module, layer=-1).preprocessing
    data = timm.data.resolve_model_data_config(module)
    transform = timm.data.create_transform(**data, is_training=False)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8))
    torch.testing.assert_close(ImageProcessor(found)(picture)[0], transform(picture), rtol=0, atol=1e-5)
    assert build_tower(TowerConfig(name="vit_tiny_patch16_224", options={"depth": 1}, layer=-1)).grid == (14, 14)
