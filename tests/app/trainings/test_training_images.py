"""Zips of images: what is taken, and that nothing else is written."""

import io
import stat
import zipfile

import pytest
from PIL import Image

from app.trainings.images import Limits, describe, survey, unpack
from onelora_vision.errors import InputError


def png(size=4):
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), "teal").save(buffer, "png")
    return buffer.getvalue()


def pack(place, names, content=None, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(place, "w", method) as archive:
        for name in names:
            archive.writestr(name, png() if content is None else content)
    return place


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["a/1.png", "a/2.jpg", "b/1.png"], {"a": 2, "b": 1}),
        (["mine/a/1.png", "mine/b/1.png", "mine/notes.txt", "mine/.DS_Store"], {"a": 1, "b": 1}),
        (["mine\\a\\1.png", "mine\\b\\1.png"], {"a": 1, "b": 1}),
        (["x/train/a/1.png", "x/train/b/1.png", "x/test/a/1.png"], {"a": 2, "b": 1}),
        (["a/deeper/1.png", "a/2.png", "b/1.png", "__MACOSX/a/1.png"], {"a": 2, "b": 1}),
        (["Äpfel, rot/1.png", "b/1.png"], {"Äpfel, rot": 1, "b": 1}),
    ],
)
def test_images_go_into_the_folders_of_their_classes(tmp_path, names, classes):
    archive = pack(tmp_path / "x.zip", names)
    assert survey(archive, Limits()) == unpack(archive, tmp_path / "out", Limits()) == classes
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) == sum(classes.values()) and {path.parent.name for path in files} == set(classes)
    assert all(Image.open(path).size == (4, 4) for path in files)
    assert f"{sum(classes.values())} images, 2 classes" in describe(classes)


def test_files_that_are_no_images_are_left_out(tmp_path):
    archive = pack(tmp_path / "x.zip", ["a/1.png", "b/1.png"])
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("a/2.png", b"no image")
    assert unpack(archive, tmp_path / "out", Limits()) == {"a": 1, "b": 1}
    assert len(list((tmp_path / "out" / "a").iterdir())) == 1
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("c/1.png", b"no image")
    with pytest.raises(InputError, match="no file of c can be read as an image"):
        unpack(archive, tmp_path / "again", Limits())
    assert not (tmp_path / "again").exists()


def test_splits_stay_apart(tmp_path):
    unpack(pack(tmp_path / "x.zip", ["train/a/1.png", "val/a/2.png", "val/b/3.png"]), tmp_path / "out", Limits())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train", "val"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["../a/1.png", "b/1.png"], "leads out of the archive"),
        (["/etc/a/1.png"], "leads out of the archive"),
        (["C:\\a\\1.png"], "leads out of the archive"),
        (["a/../../b/1.png"], "leads out of the archive"),
        (["1.png", "a/1.png"], "1.png is in no class; put the images into one folder per class"),
        (["a\x07/1.png"], "too long, hidden or not printable"),
        ([f"{'a' * 81}/1.png"], "too long, hidden or not printable"),
        ([".git/1.png", "b/1.png"], "too long, hidden or not printable"),
        (["a/readme.txt"], "no images in it"),
        ([f"a/{number}.png" for number in range(9)], "9 images; at most 8"),
        ([f"{number}/1.png" for number in range(5)], "5 classes; at most 4"),
        ([f"a/{number}.txt" for number in range(40)], "40 entries"),
    ],
)
def test_what_is_refused_leaves_nothing(tmp_path, names, message):
    archive = pack(tmp_path / "x.zip", names)
    with pytest.raises(InputError, match=message):
        unpack(archive, tmp_path / "sub" / "out", Limits(images=8, classes=4))
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_a_bomb_is_refused_by_its_list_and_by_what_comes_out(tmp_path):
    archive = pack(tmp_path / "x.zip", ["a/1.png", "a/2.png"], bytes(3_000_000), zipfile.ZIP_DEFLATED)
    assert archive.stat().st_size < 20_000
    with pytest.raises(InputError, match="unpacks to 6 MB; at most 4 MB"):
        unpack(archive, tmp_path / "out", Limits(bytes=4_000_000))
    lying = archive.read_bytes()
    for size in (b"\xc0\xc6\x2d\x00",):  # 3,000,000, as both headers have it
        assert lying.count(size) == 4
        lying = lying.replace(size, b"\x10\x00\x00\x00")
    archive.write_bytes(lying)
    with pytest.raises(InputError):
        unpack(archive, tmp_path / "out", Limits(bytes=4_000_000))
    assert not (tmp_path / "out").exists()


def test_links_are_passed_by_and_broken_archives_are_one_line(tmp_path):
    archive = pack(tmp_path / "x.zip", ["a/1.png"])
    with zipfile.ZipFile(archive, "a") as opened:
        link = zipfile.ZipInfo("a/2.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        opened.writestr(link, "/etc/passwd")
    assert unpack(archive, tmp_path / "out", Limits()) == {"a": 1}
    (tmp_path / "y.zip").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(InputError, match=r"y\.zip: not a whole zip archive"):
        survey(tmp_path / "y.zip", Limits())
