"""Reading pictures: every mode arrives as upright RGB, every bad file as one sentence with its name."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mm.vision import load_image


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.fixture
def photo():
    values = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    return Image.fromarray(values)


def test_all_kinds_of_source_give_the_same_picture(tmp_path, photo):
    path = saved(tmp_path, photo, "a.png")
    expected = np.asarray(photo)
    with path.open("rb") as file:
        for source in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes()), file, photo, expected):
            image = load_image(source)
            assert image.mode == "RGB" and type(image) is Image.Image
            assert np.array_equal(np.asarray(image), expected)


def test_transparency_is_laid_on_white(tmp_path):
    rgba = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    rgba.putpixel((1, 0), (0, 0, 0, 0))
    la = Image.new("LA", (2, 1), (10, 255))
    la.putpixel((1, 0), (0, 0))
    palette = rgba.convert("P", palette=Image.Palette.ADAPTIVE)
    grey = Image.new("L", (2, 1), 10)
    grey.putpixel((1, 0), 0)
    for image, left in ((rgba, (200, 0, 0)), (la, (10, 10, 10))):
        assert [load_image(saved(tmp_path, image, "t.png")).getpixel((x, 0)) for x in (0, 1)] == [left, (255, 255, 255)]
    transparent = palette.getpixel((1, 0))
    read = load_image(saved(tmp_path, palette, "p.png", transparency=transparent))
    assert read.getpixel((1, 0)) == (255, 255, 255) and read.getpixel((0, 0)) == (200, 0, 0)
    assert load_image(saved(tmp_path, grey, "l.png", transparency=0)).getpixel((1, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    for source in (
        values,
        saved(tmp_path, Image.fromarray(values), "a.png"),
        saved(tmp_path, Image.fromarray(values), "a.tif"),
    ):
        assert np.asarray(load_image(source))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_other_modes_become_rgb(tmp_path, photo):
    cmyk = load_image(saved(tmp_path, photo.convert("CMYK"), "c.tif"))
    assert np.array_equal(np.asarray(cmyk), np.asarray(photo.convert("CMYK").convert("RGB")))
    one_bit = load_image(saved(tmp_path, Image.new("1", (3, 2), 1), "one.png"))
    assert one_bit.mode == "RGB" and one_bit.getpixel((0, 0)) == (255, 255, 255)
    assert load_image(np.array([[True, False]])).getpixel((0, 0)) == (255, 255, 255)
    grey = load_image(saved(tmp_path, photo.convert("L"), "g.png"))
    assert np.array_equal(np.asarray(grey)[..., 1], np.asarray(photo.convert("L")))


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (39, 23)), (6, (23, 0)), (8, (0, 39))])
def test_exif_orientation_is_applied(tmp_path, orientation, corner):
    image = Image.new("RGB", (40, 24), "black")
    image.paste("white", (0, 0, 8, 8))  # the marked corner of the stored raster
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = load_image(saved(tmp_path, image, "o.jpg", exif=exif, quality=95))
    assert read.size == ((40, 24) if orientation in (1, 3) else (24, 40))
    assert min(read.getpixel(corner)) > 200


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


def bomb(side: int) -> bytes:
    """A PNG of 70 bytes whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 15_000, 50_000])
def test_decompression_bomb_is_refused_by_its_header(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side))
    with pytest.raises(ValueError, match=r"bomb\.png: .*pixels"):
        load_image(path)


def test_max_pixels_is_the_callers(photo):
    assert load_image(photo, max_pixels=960).size == (40, 24)
    with pytest.raises(ValueError, match="40 x 24 = 960 pixels, at most 959 are read"):
        load_image(photo, max_pixels=959)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.gif", "cut.tif", "cut.webp"])
def test_truncated_file_is_named(tmp_path, photo, name):
    path = saved(tmp_path, photo, name)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_image(path)


def test_empty_missing_folder_text(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match=r"empty\.png: the picture file is empty"):
        load_image(tmp_path / "empty.png")
    with pytest.raises(ValueError, match=r"text\.jpg: not a picture"):
        load_image(tmp_path / "text.jpg")
    with pytest.raises(ValueError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"gone\.png: no such picture file"):
        load_image(tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "got float32; scale it to 0..255"),
        (np.zeros((0, 4, 3), np.uint8), "non-empty"),
        (np.zeros((2, 4, 4, 3), np.uint8), r"got shape \(2, 4, 4, 3\)"),
        (Image.new("F", (2, 2)), "floating-point pixels"),
        (3.5, "cannot read a float"),
        (None, "cannot read a NoneType"),
    ],
)
def test_what_is_no_picture(source, message):
    with pytest.raises(ValueError, match=message):
        load_image(source)


@pytest.mark.parametrize("format_", ["png", "jpeg", "gif", "tiff", "webp", "bmp"])
def test_flipped_bytes_give_a_picture_or_a_named_value_error(photo, format_):
    buffer = io.BytesIO()
    photo.save(buffer, format_)
    generator, refused = random.Random(0), 0
    for _ in range(60):
        data = bytearray(buffer.getvalue())
        for _ in range(3):
            data[generator.randrange(min(len(data), 200))] = generator.randrange(256)
        try:
            assert load_image(bytes(data), name="damaged.img").mode == "RGB"
        except ValueError as error:
            refused += 1
            assert str(error).startswith("damaged.img: ") and "\n" not in str(error)
    assert refused > 0
