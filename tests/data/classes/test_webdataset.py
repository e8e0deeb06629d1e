"""Images in tar files: the same as in folders, in any order, and damaged files in one line."""

import io
import json
import tarfile
import time

import numpy as np
import pytest
import torch
from PIL import Image

from onelora_vision.data import content, known_hashes
from onelora_vision.data.classes import webdataset
from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.classes.formats import open_class_images, open_training_images
from onelora_vision.data.content import content_hashes
from onelora_vision.data.generation import SquareCrop
from onelora_vision.data.known_hashes import FileStates
from onelora_vision.data.paths import Paths
from onelora_vision.errors import InputError, MissingSplit


def picture(number):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def write_tar(path, members, format=tarfile.GNU_FORMAT):
    """A tar file of (name, bytes or text)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def samples(numbers, label=lambda number: ["cat", "dog"][number % 2], kind="cls"):
    for number in numbers:
        value = str(label(number)) if kind == "cls" else json.dumps({"width": 9, "label": label(number)})
        yield f"{number:04d}.png", picture(number)
        yield f"{number:04d}.{kind}", value


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known_hashes, "_SETTLED_NS", -(10**12))  # files that were just written count
    return tmp_path / "cache" / "onelora_vision"


@pytest.fixture
def folder(tmp_path):
    """Ten images of two classes in two tar files, and the same as class folders."""
    for part in (0, 1):
        write_tar(tmp_path / "tars" / f"part-{part:03d}.tar", samples(range(part, 10, 2), lambda k: "ab"[k % 5 > 2]))
    for number in range(10):
        path = tmp_path / "files" / "ab"[number % 5 > 2] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return tmp_path / "tars"


def by_hash(images):
    return {found: int(label) for found, label in zip(content_hashes(images), images.labels, strict=True)}


def test_images_classes_and_hashes_are_those_of_the_files(folder):
    train, test = (open_class_images("webdataset", folder, split) for split in ("train", "test"))
    files = by_hash(open_class_images("imagefolder", folder.parent / "files").joined(
        open_class_images("imagefolder", folder.parent / "files", "test")))  # fmt: skip
    assert train.class_names == ["a", "b"] and by_hash(train) | by_hash(test) == files and len(train) == 8
    assert by_hash(train.joined(test)) == files
    for index in range(8):
        number = int(train.path(index)[-8:-4])
        assert train.path(index).startswith(str(folder / f"part-00{number % 2}.tar/"))
        np.testing.assert_array_equal(train.read(index), Image.open(io.BytesIO(picture(number))))


@pytest.mark.parametrize("part", [0, 1])
def test_the_order_is_that_of_the_names_and_any_item_can_be_read_alone(folder, part):
    pattern = str(folder / "part-{000..001}.tar") if part else str(folder / "part-*.tar")
    images, held_out = open_training_images("webdataset", pattern, validation_fraction=0.3, seed=1)
    again, _ = open_training_images("webdataset", folder, validation_fraction=0.3, seed=1)
    assert [images.path(k) for k in range(len(images))] == [again.path(k) for k in range(len(again))]
    assert images.identity() == again.identity() != held_out.identity()
    assert not {*content_hashes(images)} & {*content_hashes(held_out)}
    dataset = ClassImageDataset(images, SquareCrop(8, center_crop=False))
    assert torch.equal(dataset[4]["image"], dataset.__getitems__([2, 4])[1]["image"])


def test_names_tell_splits_and_json_tells_labels(tmp_path):
    for split, numbers in (("train", range(6)), ("val", range(6, 9)), ("test", range(9, 11))):
        write_tar(tmp_path / f"pets-{split}-0.tar", samples(numbers, lambda k: k % 3 + 8, "json"))
    opened = {split: open_class_images("webdataset", tmp_path, split) for split in ("train", "validation", "test")}
    assert [len(images) for images in opened.values()] == [6, 3, 2]
    assert all(images.class_names == ["8", "9", "10"] for images in opened.values())  # as numbers
    assert opened["test"].labels.tolist() == [0, 1]
    (tmp_path / "classnames.txt").write_text("\n".join(f"pet {k}" for k in range(11)))
    assert open_class_images("webdataset", tmp_path).class_names == ["pet 8", "pet 9", "pet 10"]
    (tmp_path / "classnames.txt").write_text("\n".join(["a"] * 11))
    with pytest.raises(InputError, match=r"classnames\.txt: a is the name of 3 classes"):
        open_class_images("webdataset", tmp_path)
    (tmp_path / "classnames.txt").write_text("\n".join(f"pet {k}" if k != 9 else "" for k in range(11)))
    with pytest.raises(InputError, match=r"classnames\.txt: line 10 is empty, but there is a class 9"):
        open_class_images("webdataset", tmp_path)
    (tmp_path / "classnames.txt").write_text("a\nb")
    with pytest.raises(InputError, match=r"classnames\.txt: has 2 names, from 0, but there is a class 8"):
        open_class_images("webdataset", tmp_path)
    (tmp_path / "classnames.txt").unlink()
    (tmp_path / "pets-test-0.tar").unlink()
    with pytest.raises(MissingSplit, match="validation split"):
        open_class_images("webdataset", tmp_path, "validation")
    write_tar(tmp_path / "more.tar", samples([20]))
    with pytest.raises(InputError, match=r"more\.tar: has no train, val or test in its name"):
        open_class_images("webdataset", tmp_path)


def test_a_negative_number_has_no_name_in_the_list(tmp_path):
    write_tar(tmp_path / "part-0.tar", samples(range(6), lambda number: number % 3 - 1))
    (tmp_path / "classnames.txt").write_text("a\nb")
    with pytest.raises(InputError, match=r"has 2 names, from 0, but there is a class -1"):
        open_class_images("webdataset", tmp_path)


def test_a_test_split_is_not_trained_on(tmp_path):
    write_tar(tmp_path / "test-0.tar", samples(range(6)))
    with pytest.raises(InputError, match="has no tar files of a train split; it has test"):
        open_class_images("webdataset", tmp_path)
    write_tar(tmp_path / "trainval-0.tar", samples(range(6)))
    with pytest.raises(InputError, match=r"trainval-0\.tar: has no train, val or test in its name"):
        open_class_images("webdataset", tmp_path)


def test_a_file_that_changes_during_a_run_is_named(folder):
    images = open_class_images("webdataset", folder)
    path = folder / "part-000.tar"
    images.images.tar_states[:] = FileStates.of(
        Paths(images.images.tars), time.time_ns() + 10**12
    ).state  # as if older
    path.touch()
    with pytest.raises(InputError, match=r"part-000\.tar: has changed since this run opened it"):
        [images.read(index) for index in range(len(images))]


def test_folders_tell_splits(tmp_path):
    write_tar(tmp_path / "train" / "0.tar", samples(range(6)))
    write_tar(tmp_path / "val" / "0.tar", samples([7, 9]))
    assert open_class_images("webdataset", tmp_path, "test").labels.tolist() == [1, 1]
    write_tar(tmp_path / "val" / "0.tar", samples([7], lambda k: "cow"))
    with pytest.raises(InputError, match=r"no such class in the training split: cow"):
        open_class_images("webdataset", tmp_path, "test")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_all_formats_are_read(tmp_path, format):
    names = [f"{'d' * 60}/{'f' * 60}ü", "x" * 90] + ([] if format == tarfile.USTAR_FORMAT else [f"{'g' * 300}é"])
    members = [(f"{name}.{kind}", data) for name in names for kind, data in (("JPG", picture(1)), ("CLS", "a b"))]
    members[2:2] = [("._" + names[0], b"junk"), ("notes.txt", "no image")]
    write_tar(tmp_path / "0.tar", members, format)
    train = webdataset._opened([str(tmp_path / "0.tar")])[0]
    assert [train.path(k).split("0.tar/")[1] for k in range(len(train))] == [f"{name}.JPG" for name in names]
    assert all(train.encoded(k) == picture(1) for k in range(len(train)))


def test_files_are_searched_and_hashed_once_and_again_when_they_change(folder, cache, monkeypatch):
    searched, hashed = [], []
    index_tar, digest = webdataset.index_tar, content._digest
    monkeypatch.setattr(content, "_WORTH_KEEPING", 0)
    monkeypatch.setattr(content, "_VERIFIED", 0)
    monkeypatch.setattr(webdataset, "index_tar", lambda path: searched.append(path[-7:]) or index_tar(path))
    monkeypatch.setattr(content, "_digest", lambda image: hashed.append(image) or digest(image))
    first = by_hash(open_class_images("webdataset", folder))
    assert searched == ["000.tar", "001.tar"] and len(hashed) == 8 and len([*(cache / "tars").iterdir()]) == 2
    assert by_hash(open_class_images("webdataset", folder)) == first and len(searched) == 2 and len(hashed) == 8
    write_tar(folder / "part-001.tar", samples(range(30, 36), lambda k: "ab"[k % 2]))
    changed = by_hash(open_class_images("webdataset", folder))
    assert searched[2:] == ["001.tar"] and changed != first and 0 < len(hashed) - 8 <= 6
    next((cache / "tars").iterdir()).write_bytes(b"damaged")
    assert by_hash(open_class_images("webdataset", folder)) == changed


CASES = {
    "no tar": (lambda data: b"hello" * 1000, "damaged, or not a tar file"),
    "empty": (lambda data: b"", "ends without the empty block"),
    "cut in a member": (lambda data: data[:700], "ends in the middle of a member"),
    "cut after a member": (lambda data: data[:1024], "ends without the empty block"),
    "flipped": (lambda data: data[:30] + b"?" + data[31:], "checksum"),
    "compressed": (lambda data: b"\x1f\x8b" + data, "is compressed"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_one_line(tmp_path, case):
    change, message = CASES[case]
    path = write_tar(tmp_path / "0.tar", samples(range(4)))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=rf"0\.tar: .*{message}") as caught:
        open_class_images("webdataset", tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"x")], r"a\.jpg has no label"),
        ([("a.jpg", b"x"), ("b.cls", "1")], r"a\.jpg has no label"),
        ([("a.jpg", b"x"), ("a.cls", "line\nline")], "not one line of text"),
        ([("a.jpg", b"x"), ("a.cls", " ")], "not one line of text"),
        ([("a.jpg", b"x"), ("a.cls", b"\xff")], "not one line of text"),
        ([("a.jpg", b"x"), ("a.cls", "y" * 300)], "300 bytes"),
        ([("a.jpg", b"x"), ("a.json", "[" * 5000)], "not one line of text"),
        ([("a.jpg", b"x"), ("a.json", '{"label": {}}')], "not one line of text"),
        ([("a.jpg", b"x"), ("a.json", "x" * (2 << 20))], "2097152 bytes|2,097,152 bytes"),
        ([("g" * 2000 + ".jpg", b"x"), ("g" * 2000 + ".cls", "1")], "name of more than 1024 bytes"),
        ([("g" * 99999 + ".jpg", b"x")], "names may have 1024"),
    ],
)  # fmt: skip
def test_names_and_labels_are_bounded(tmp_path, members, message):
    write_tar(tmp_path / "0.tar", members)
    with pytest.raises(InputError, match=message) as caught:
        open_class_images("webdataset", tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_names_that_lead_elsewhere_are_read_and_nothing_is_written(tmp_path):
    write_tar(tmp_path / "in" / "0.tar", [("../../out.png", picture(1)), ("../../out.cls", "x"), ("/z.png", picture(2)),
                                          ("/z.cls", "x")])  # fmt: skip
    images = open_class_images("webdataset", tmp_path / "in")
    assert images.read(0).size == (9, 9)
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == []


def test_a_file_that_shrinks_or_a_damaged_image_is_named(folder):
    images = open_class_images("webdataset", folder)
    path = folder / "part-000.tar"
    path.write_bytes(path.read_bytes()[:600])
    images.images.tar_states[:] = 0  # as if it had been written just before
    with pytest.raises(InputError, match=r"part-000\.tar/0\d+\.png: the tar file ends before"):
        [images.read(index) for index in range(len(images))]
    write_tar(
        folder / "part-000.tar", [("a.jpg", b"junk"), ("a.cls", "a")] + [*samples([7, 8], lambda k: "ab"[k % 2])]
    )
    images = open_class_images("webdataset", folder)
    dataset = ClassImageDataset(images, SquareCrop(8), on_bad_image="skip")
    dataset.__getitems__(range(len(images)))
    assert dataset.num_bad_images <= 1
    with pytest.raises(InputError, match=r"part-000\.tar/a\.jpg"):
        webdataset._opened([str(path)])[0][0]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nothing", "no tar files there"),
        ("*.tgz", "no tar files there"),
        ("part-{000..003}.tar", r"part-002\.tar: cannot be read"),
        ("part-{005..001}.tar", "names no files"),
        ("part-{0..999999999}.tar", "more than 100,000"),
    ],
)
def test_a_pattern_without_files_is_one_line(folder, place, message):
    with pytest.raises(InputError, match=message):
        open_class_images("webdataset", folder / place)
