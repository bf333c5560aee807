"""Finding the file that an annotation means."""

import pytest

from mm.data.video_files import VideoFiles, video_files, video_key


@pytest.fixture
def folder(tmp_path):
    for name in ("video7.mp4", "deep/video8.mkv", "deep/twice.mp4", "other/twice.webm", "notes.txt", "v.2_of.3.MOV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * len(name))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("video7", "video7.mp4"),
        ("video7.mp4", "video7.mp4"),
        ("video7.avi", "video7.mp4"),  # the annotation says .avi, the folder holds something else
        ("video8", "deep/video8.mkv"),
        ("deep/video8", "deep/video8.mkv"),
        ("elsewhere/video8.mp4", "deep/video8.mkv"),
        ("deep/twice", "deep/twice.mp4"),
        ("v.2_of.3", "v.2_of.3.MOV"),
    ],
)
def test_names_lead_to_files(folder, name, file):
    assert VideoFiles(folder).find(name) == folder / file


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("video9", "no video 'video9' below .* which holds 5 videos"),
        ("notes", "no video 'notes'"),
        ("twice", "may be any of deep/twice.mp4, other/twice.webm"),
        ("../video7", "leads out of the folder"),
        ("/etc/passwd", "leads out of the folder"),
    ],
)
def test_what_is_not_there_is_said(folder, name, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        VideoFiles(folder).find(name)


def test_names_can_be_translated(folder):
    assert VideoFiles(folder, {"vid1": "video8"}).find("vid1").name == "video8.mkv"


def test_folders(folder, tmp_path):
    assert [path.name for path in video_files(folder)] == [
        "twice.mp4",
        "video8.mkv",
        "twice.webm",
        "v.2_of.3.MOV",
        "video7.mp4",
    ]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        video_files(folder / "none")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="no video below it"):
        video_files(folder / "empty")


def test_another_file_gets_another_key(folder):
    before = video_key(folder / "deep/video8.mkv", folder)
    assert before == "deep/video8.mkv (15 bytes)"
    (folder / "deep/video8.mkv").write_bytes(b"longer than before")
    assert video_key(folder / "deep/video8.mkv", folder) != before
