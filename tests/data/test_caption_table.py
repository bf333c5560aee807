"""Tables of captions: every format gives the same entries, and what is wrong is named."""

import json

import numpy as np
import pytest
from PIL import Image

from mm.data import CaptionTable

ROWS = [("a.png", "a red circle"), ("b.png", 'he said "hi"'), ("a.png", "a circle, red"), ("c.png", "  ")]
WANTED = [("a.png", ("a red circle", "a circle, red")), ("b.png", ('he said "hi"',)), ("c.png", ())]


def write(folder, name):
    path = folder / name
    if name.endswith("csv"):
        quoted = ['"' + text.replace('"', '""') + '"' for _, text in ROWS]
        lines = [f"{image},{text}" for (image, _), text in zip(ROWS, quoted, strict=True)]
        path.write_text("image,caption\n" + "\n".join(lines), encoding="utf-8-sig")
    elif name.endswith("tsv"):
        path.write_text("filepath\ttitle\na.png\ta red circle\nb.png\t'x'\n")
    elif name == "list.json":
        path.write_text(json.dumps([{"image": image, "caption": text} for image, text in ROWS]))
    elif name == "lines.jsonl":
        path.write_text("\n".join(json.dumps({"file_name": image, "text": [text]}) for image, text in ROWS) + "\n\n")
    elif name == "coco.json":
        names = sorted({image for image, _ in ROWS})
        images = [{"id": number, "file_name": image} for number, image in enumerate(names)]
        said = [{"image_id": names.index(image), "caption": text} for image, text in ROWS]
        path.write_text(json.dumps({"images": images, "annotations": said}))
    return path


@pytest.mark.parametrize("name", ["table.csv", "list.json", "lines.jsonl", "coco.json"])
def test_every_format_gives_the_same_entries(tmp_path, name):
    table = CaptionTable(write(tmp_path, name))
    assert [(entry.image, entry.captions) for entry in table.entries()] == WANTED
    assert table.captions() == ["a red circle", "a circle, red", 'he said "hi"']
    assert table.without_caption == 1


def test_open_clip_tables_and_text_files(tmp_path):
    assert CaptionTable(write(tmp_path, "t.tsv")).captions() == ["a red circle", "'x'"]
    (tmp_path / "t.txt").write_text("one\n\n two\u3000 words \none\n")
    table = CaptionTable(tmp_path / "t.txt")
    assert table.captions() == ["one", "two words", "one"] and table.without_caption == 1


def test_pictures_are_read_when_asked_for(tmp_path):
    for name in "abc":
        Image.fromarray(np.full((4, 6, 3), ord(name), np.uint8)).save(tmp_path / f"{name}.png")
    samples = list(CaptionTable(write(tmp_path, "table.csv")))
    assert [int(sample.images[0][0, 0, 0]) for sample in samples] == [97, 98, 99]
    assert samples[0].text == "a red circle" and samples[0].meta["captions"] == ("a red circle", "a circle, red")
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"table.csv: row 2: .*b.png"):
        list(CaptionTable(write(tmp_path, "table.csv")))


def test_columns_can_be_named_and_classes_read(tmp_path):
    (tmp_path / "t.csv").write_text("key,words,species\na.png,long text,cat\n")
    entry = CaptionTable(tmp_path / "t.csv", caption="words", image="key", label="species").entries()[0]
    assert (entry.image, entry.captions, entry.label) == ("a.png", ("long text",), "cat")
    with pytest.raises(ValueError, match="no column 'caption'; there are key, words, species"):
        CaptionTable(tmp_path / "t.csv", caption="caption").entries()
    with pytest.raises(ValueError, match="no column of captions; there are key, words, species"):
        CaptionTable(tmp_path / "t.csv").entries()


def test_a_cell_may_be_longer_than_pythons_limit(tmp_path):
    (tmp_path / "t.csv").write_text("caption\n" + "word " * 40_000)
    assert len(CaptionTable(tmp_path / "t.csv").captions()[0]) == 5 * 40_000 - 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", "{broken", "can't be read as json"),
        ("t.json", '{"a": 1}', "expected a list of objects, or COCO"),
        ("t.json", '[{"caption": 7}]', "entry 0: a caption must be text, got 7"),
        ("t.json", '[{"caption": "\\ud83d"}]', "entry 0: the caption holds half a character"),
        ("t.json", '{"images": [], "annotations": [{"image_id": 3, "caption": "x"}]}', "picture 3, which is not"),
        ("t.csv", "caption\n", "no entry in it"),
        ("t.json", '[{"caption": "x", "image": ["a.png", "b.png"]}]', "entry 0: one picture per entry, got 2"),
        ("t.doc", "x", "one of .txt, .csv"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        CaptionTable(tmp_path / name).entries()


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="can't be read as txt in UTF-8"):
        CaptionTable(tmp_path / "t.txt").entries()
    with pytest.raises(FileNotFoundError, match="no such table"):
        CaptionTable(tmp_path / "none.txt").entries()
