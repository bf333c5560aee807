import io
import json
import logging
import tarfile

import numpy as np
import pytest
from PIL import Image

from mm.data.conversation import chat_messages, llava_messages, paired_turns
from mm.data.image_folder import ImageFolder
from mm.data.llava_json import LlavaJson
from mm.data.messages_jsonl import MessagesJsonl

GREYS = (10, 90, 200)


def png(grey, size=(6, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, (grey, grey, grey)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, grey in enumerate(GREYS):
        (folder / f"{index}.png").write_bytes(png(grey))
    (folder / "cut.png").write_bytes(png(0, (64, 64))[:60])
    return folder


def says(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def chats(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


GOOD = {"id": "a", "image": "0.png", "conversations": says("<image>\nwhat?", "grey")}


def llava(tmp_path, pictures, records, **options):
    path = tmp_path / "records.json"
    path.write_text(records if isinstance(records, str) else json.dumps(records))
    return LlavaJson(path, pictures, **options)


# --- LLaVA JSON --------------------------------------------------------------------------------------------------


def test_llava_record_gives_picture_question_and_answer(tmp_path, pictures):
    (sample,) = llava(tmp_path, pictures, [GOOD])
    assert (sample.question, sample.answer, sample.meta["id"], sample.meta["index"]) == ("what?", "grey", "a", 0)
    assert sample.images[0].shape == (4, 6, 3) and (sample.images[0] == GREYS[0]).all()


def test_llava_conversation_keeps_all_turns(tmp_path, pictures):
    record = {"image": "1.png", "conversations": says("<image>\nfirst?", "one", "second?", "two", "third?", "three")}
    (sample,) = llava(tmp_path, pictures, [record])
    assert sample.turns == [("first?", "one"), ("second?", "two"), ("third?", "three")]
    assert (sample.question, sample.answer) == ("third?", "three")


def test_text_only_and_several_pictures(tmp_path, pictures):
    records = [
        {"conversations": says("no picture?", "none")},
        {"image": ["0.png", "2.png"], "conversations": says("<image><image>\nboth?", "yes")},
        {"image": ["0.png", "2.png"], "conversations": says("is <image> darker than <image>?", "yes")},
        {"image": ["0.png", "2.png"], "conversations": says("<image> this?", "yes", "and <image>?", "no")},
    ]
    none, both, between, later = llava(tmp_path, pictures, records)
    assert none.images == [] and none.question == "no picture?"
    assert both.question == "both?" and [image[0, 0, 0] for image in both.images] == [GREYS[0], GREYS[2]]
    assert between.question == "is <image> darker than <image>?"
    assert later.turns == [("<image> this?", "yes"), ("and <image>?", "no")]


BAD = {
    "missing picture": ({**GOOD, "image": "9.png"}, "9.png"),
    "damaged picture": ({**GOOD, "image": "cut.png"}, "cut.png"),
    "placeholders": ({**GOOD, "image": ["0.png", "1.png"]}, "1 <image> placeholders, the record has 2 pictures"),
    "placeholder without picture": ({"conversations": says("<image>?", "x")}, "the record has 0 pictures"),
    "turns": ({**GOOD, "conversations": says("<image>")[:1] * 2}, "must take turns"),
    "speaker": ({**GOOD, "conversations": [{"from": "cat", "value": "meow"}]}, "message 0 must hold 'from'"),
    "no conversation": ({"image": "0.png"}, "'conversations' must be a list"),
    "no record": (["x"], "expected a record"),
    "video": ({**GOOD, "video": "a.mp4"}, "extract frames"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_record_is_named_by_file_and_index(name, tmp_path, pictures):
    record, message = BAD[name]
    reader = llava(tmp_path, pictures, [GOOD, record])
    with pytest.raises(ValueError, match=rf"records.json: record 1.*: .*{message}"):
        list(reader)


def test_bad_records_are_counted_and_logged_and_the_good_ones_come(tmp_path, pictures, caplog):
    bad = [record for record, _ in BAD.values()]
    reader = llava(tmp_path, pictures, [GOOD, *bad, GOOD], on_error="count")
    with caplog.at_level(logging.WARNING):
        assert [sample.meta["index"] for sample in reader] == [0, len(bad) + 1]
    assert len(reader.errors) == len(bad)
    assert f"{len(bad)} of {len(bad) + 2} records could not be read" in caplog.messages[-1]
    for index, (message, logged) in enumerate(zip(reader.errors, caplog.messages, strict=False), 1):
        assert f"record {index}" in message and message in logged
    assert len(list(reader)) == 2 and len(reader.errors) == len(bad)  # a second pass starts a new count


@pytest.mark.parametrize("text, message", [("{", "not valid JSON"), ('{"a": 1}', "expected a list of records")])
def test_a_bad_file_stops_in_any_mode(text, message, tmp_path, pictures):
    with pytest.raises(ValueError, match=message):
        list(llava(tmp_path, pictures, text, on_error="count"))


def test_missing_file_and_unknown_mode(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(LlavaJson(tmp_path / "nothing.json"))
    with pytest.raises(ValueError, match="on_error must be"):
        LlavaJson(tmp_path / "nothing.json", on_error="ignore")


def test_reading_is_lazy(tmp_path, pictures):
    reader = iter(llava(tmp_path, pictures, [GOOD, {**GOOD, "image": "9.png"}]))
    assert next(reader).answer == "grey"


def test_parts_cover_every_record_once(tmp_path, pictures):
    records = [{**GOOD, "id": str(index)} for index in range(7)]
    reader = llava(tmp_path, pictures, records)
    parts = [[sample.meta["index"] for sample in reader.part(index, 3)] for index in range(3)]
    assert parts == [[0, 3, 6], [1, 4], [2, 5]]
    nested = [sample.meta["index"] for index in range(2) for sample in reader.part(0, 3).part(index, 2)]
    assert nested == [0, 6, 3]
    with pytest.raises(ValueError, match=r"part must be in 0\.\.2"):
        reader.part(3, 3)


# --- chat lines --------------------------------------------------------------------------------------------------


def lines(tmp_path, pictures, records, **options):
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return MessagesJsonl(path, pictures, **options)


def test_chat_lines(tmp_path, pictures):
    parts = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    records = [
        {"messages": chats("<image>what?", "grey"), "images": ["1.png"]},
        "",
        {"messages": [{"role": "system", "content": "be kind"}, *chats(parts)], "images": "2.png"},
    ]
    first, second = lines(tmp_path, pictures, records)
    assert (first.question, first.answer, first.meta["index"]) == ("what?", "grey", 1)
    assert (second.question, second.answer, second.meta["system"]) == ("what is it?", "", "be kind")
    assert (second.images[0] == GREYS[2]).all() and second.meta["index"] == 3


@pytest.mark.parametrize(
    "record, message",
    [
        ("{broken", "not valid JSON"),
        ("[1]", "expected an object"),
        ({"messages": "hi"}, "'messages' must be a list"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "message 0 must hold 'role'"),
        ({"messages": chats([{"type": "sound"}])}, "a part must be a text or an image"),
        ({"messages": chats(5)}, "content must be text or a list"),
        ({"messages": chats("<image>?", "x"), "images": ["0.png", "1.png"]}, "1 <image> placeholders"),
    ],
)
def test_a_bad_line_is_named_by_its_number(record, message, tmp_path, pictures):
    with pytest.raises(ValueError, match=rf"chat.jsonl: line 2: .*{message}"):
        list(lines(tmp_path, pictures, [{"messages": chats("a?", "b")}, record]))


def test_turns_must_alternate():
    assert paired_turns(chat_messages(chats("a", "b", "c"))) == ("", [("a", "b"), ("c", "")])
    with pytest.raises(ValueError, match="got nothing"):
        paired_turns(llava_messages([]))
    with pytest.raises(ValueError, match="got assistant"):
        paired_turns([("assistant", "hi")])


# --- folders -----------------------------------------------------------------------------------------------------


def test_folder_gives_classes_and_captions(tmp_path):
    for name, grey in (("cat/2.png", 1), ("cat/1.png", 2), ("dog/small/1.PNG", 3), ("loose.png", 4)):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(grey))
    (tmp_path / "root/cat/1.txt").write_text("a grey cat\n")
    samples = list(ImageFolder(tmp_path / "root", question="who?"))
    assert [(s.images[0][0, 0, 0], s.question, s.answer, s.text) for s in samples] == [
        (2, "who?", "cat", "a grey cat"),
        (1, "who?", "cat", ""),
        (3, "who?", "dog/small", ""),
        (4, "", "", ""),
    ]


def test_folder_names_damaged_pictures_and_bad_captions(tmp_path, pictures):
    (pictures / "1.txt").write_bytes(b"\xff\xfe\x00x")
    reader = ImageFolder(pictures, on_error="count")
    assert len(list(reader)) == 2
    assert ["cut.png" in reader.errors[1], "1.txt" in reader.errors[0]] == [True, True]


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list(ImageFolder(tmp_path / "x"))
    with pytest.raises(ValueError, match="no pictures below it"):
        list(ImageFolder(tmp_path))


# --- WebDataset --------------------------------------------------------------------------------------------------


def shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for key, parts in samples.items():
            for suffix, data in parts.items():
                data = data if isinstance(data, bytes) else data.encode()
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture
def shards(tmp_path):
    pytest.importorskip("webdataset")
    from mm.data.webdataset import WebDatasetShards

    shard(
        tmp_path / "s-00.tar",
        {
            "000": {"png": png(10), "txt": "a grey picture"},
            "001": {"png": png(90), "cls": "cat"},
            "002": {"png": png(200), "json": json.dumps({"conversations": says("<image>\nwhat?", "grey")})},
        },
    )
    pair = {"0.png": png(10), "1.png": png(90), "json": json.dumps({"messages": chats("same?", "no")})}
    shard(tmp_path / "s-01.tar", {"003": pair, "004": {"jpg": b"junk"}, "005": {"txt": "only words"}})
    return WebDatasetShards, tmp_path


def test_shards_of_captions_classes_and_conversations(shards):
    reader, folder = shards
    caption, label, chat = reader(str(folder / "s-00.tar"))
    assert (caption.text, caption.question, caption.answer) == ("a grey picture", "", "")
    assert caption.meta["id"].endswith("000") and (caption.images[0] == 10).all()
    assert (label.question, label.answer) == ("what is in the picture?", "cat")
    assert (chat.question, chat.answer) == ("what?", "grey")


def test_braces_name_several_shards_and_bad_samples_are_counted(shards):
    reader, folder = shards
    source = reader(str(folder / "s-{00..01}.tar"), on_error="count")
    samples = list(source)
    assert len(samples) == 5 and [image[0, 0, 0] for image in samples[3].images] == [10, 90]
    assert samples[4].text == "only words" and not samples[4].images
    assert len(source.errors) == 1 and "s-01.tar: sample 1" in source.errors[0]
    with pytest.raises(ValueError, match=r"s-01.tar: sample 1.*part 'jpg'"):
        list(reader(str(folder / "s-{00..01}.tar")))


def test_a_shard_that_breaks_off_is_reported(shards):
    reader, folder = shards
    data = (folder / "s-00.tar").read_bytes()
    (folder / "cut.tar").write_bytes(data[: len(data) // 2 - 300])
    source = reader([str(folder / "cut.tar"), str(folder / "s-00.tar")], on_error="count")
    assert len(list(source)) >= 3
    assert any("cut.tar" in message for message in source.errors)
    with pytest.raises(ValueError, match=r"missing.tar"):
        list(reader(str(folder / "missing.tar")))


# --- Hugging Face tables -----------------------------------------------------------------------------------------


@pytest.fixture
def table():
    datasets = pytest.importorskip("datasets")
    from mm.data.hf_datasets import HFDataset

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "asked": datasets.Value("string"),
            "kind": datasets.ClassLabel(names=["cat", "dog"]),
        }
    )
    rows = {"image": [{"bytes": png(grey), "path": None} for grey in GREYS], "asked": ["a?", "b?", "c?"]}
    return HFDataset, datasets.Dataset.from_dict({**rows, "kind": [0, 1, 0]}, features=features)


def test_table_with_named_columns(table):
    reader, data = table
    samples = list(reader(data, question="asked", answer="kind"))
    assert [(s.images[0][0, 0, 0], s.question, s.answer) for s in samples] == [
        (10, "a?", "cat"),
        (90, "b?", "dog"),
        (200, "c?", "cat"),
    ]


def test_table_from_disk_and_as_a_stream(table, tmp_path):
    reader, data = table
    data.save_to_disk(str(tmp_path / "saved"))
    columns = {"question": "asked", "answer": "kind"}
    for source in (tmp_path / "saved", data.to_iterable_dataset()):
        assert [sample.answer for sample in reader(source, **columns)] == ["cat", "dog", "cat"]


def test_a_damaged_picture_in_a_table_is_one_bad_row(table):
    reader, data = table
    rows = {"image": [{"bytes": png(10), "path": None}, {"bytes": b"junk", "path": None}], "asked": ["a?", "b?"]}
    broken = type(data).from_dict({**rows, "kind": [0, 1]}, features=data.features)
    source = reader(broken, question="asked", answer="kind", on_error="count")
    assert len(list(source)) == 1 and "row 1" in source.errors[0]


def test_table_of_conversations_with_several_pictures(table):
    import datasets

    reader, _ = table
    features = datasets.Features(
        {
            "image": datasets.List(datasets.Image()),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        }
    )
    rows = {"image": [[{"bytes": png(g), "path": None} for g in GREYS]], "messages": [chats("how many?", "three")]}
    (sample,) = reader(datasets.Dataset.from_dict(rows, features=features))
    assert len(sample.images) == 3 and (sample.question, sample.answer) == ("how many?", "three")


def test_wrong_columns_are_listed(table, tmp_path):
    reader, data = table
    with pytest.raises(ValueError, match="no column query; the data set has image, asked, kind"):
        reader(data, question="query")
    with pytest.raises(ValueError, match="no column with text was named"):
        reader(data)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        reader(tmp_path / "x", question="asked")


def test_reading_is_repeatable(tmp_path, pictures):
    reader = llava(tmp_path, pictures, [GOOD, {**GOOD, "image": "1.png"}])
    first, second = list(reader), list(reader)
    assert all(np.array_equal(a.images[0], b.images[0]) for a, b in zip(first, second, strict=True))
