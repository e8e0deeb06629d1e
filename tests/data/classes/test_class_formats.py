import hashlib
import inspect

import numpy as np
import pytest
from data_layouts import CIFAR, write_cifar, write_food101
from PIL import Image

from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.classes.formats import (
    FORMATS,
    ClassFormat,
    ignored_by,
    open_class_images,
    open_training_images,
)
from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.content import content_hashes
from onelora_vision.errors import InputError, MissingSplit


def save(path, color="gray", size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_imagefolder_without_a_split_is_divided_by_class_and_seed(folder):
    train, test = (open_class_images("imagefolder", folder, split) for split in ("train", "test"))
    assert train.class_names == ["cat", "dog", "Äffchen"]
    assert [train.labels.tolist().count(k) for k in range(3)] == [8] * 3
    assert [test.labels.tolist().count(k) for k in range(3)] == [2] * 3
    assert not set(train.images) & set(test.images)
    assert open_class_images("imagefolder", folder, "train").images == train.images
    assert open_class_images("imagefolder", folder, "train", seed=1).images != train.images


def test_imagefolder_with_split_folders(tmp_path):
    for split, count in (("train", 3), ("val", 2)):
        for name in ("a", "b"):
            for number in range(count):
                save(tmp_path / split / name / f"{number}.png")
    assert len(open_class_images("imagefolder", tmp_path, "train")) == 6
    assert len(open_class_images("imagefolder", tmp_path, "test")) == 4
    with pytest.raises(MissingSplit):  # what is the test split must not choose settings
        open_class_images("imagefolder", tmp_path, "validation")
    save(tmp_path / "test" / "a" / "0.png")
    save(tmp_path / "test" / "b" / "0.png")
    assert len(open_class_images("imagefolder", tmp_path, "test")) == 2
    assert len(open_class_images("imagefolder", tmp_path, "validation")) == 4
    save(tmp_path / "val" / "bb" / "0.png")
    with pytest.raises(InputError, match="bb: no such class in the training split"):
        open_class_images("imagefolder", tmp_path, "validation")


@pytest.mark.parametrize("empty", [True, False])
def test_a_split_may_lack_a_class_that_training_has(tmp_path, empty):
    for name in ("a", "b", "c"):
        save(tmp_path / "train" / name / "0.png")
    for split, names in {"test": ("c",), "val": ("b", "c")}.items():
        for name in names:
            save(tmp_path / split / name / "0.png")
        if empty:
            (tmp_path / split / "a").mkdir()
    test, validation = (open_class_images("imagefolder", tmp_path, split) for split in ("test", "validation"))
    assert test.class_names == validation.class_names == ["a", "b", "c"]
    assert test.labels.tolist() == [2] and validation.labels.tolist() == [1, 2]
    (tmp_path / "test" / "c" / "0.png").unlink()
    with pytest.raises(InputError, match="test: no images in its class folders"):
        open_class_images("imagefolder", tmp_path, "test")
    (tmp_path / "train" / "b" / "0.png").unlink()
    with pytest.raises(InputError, match="b: class folder without images"):
        open_class_images("imagefolder", tmp_path, "train")


def test_class_numbers_are_those_of_the_training_split(tmp_path):
    datasets = pytest.importorskip("datasets")

    def table(kinds):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        pictures = [Image.new("RGB", (4, 4))] * len(kinds)
        return datasets.Dataset.from_dict({"image": pictures, "label": kinds}, features=features)

    datasets.DatasetDict(train=table(["b", "c"]), test=table(["c"])).save_to_disk(tmp_path / "known")
    train, test = (open_class_images(str(tmp_path / "known"), split=split) for split in ("train", "test"))
    assert train.class_names == test.class_names == ["b", "c"] and test.labels.tolist() == [1]
    datasets.DatasetDict(train=table(["b", "c"]), test=table(["a", "b"])).save_to_disk(tmp_path / "unknown")
    with pytest.raises(InputError, match="no such class in the training split: a"):
        open_class_images(str(tmp_path / "unknown"), split="test")


def test_a_single_image_trains_and_cannot_be_tested_on(tmp_path):
    save(tmp_path / "a" / "0.png")
    train, validation = open_training_images("imagefolder", tmp_path, validation_fraction=0.1)
    assert len(train) == 1 and validation is None
    with pytest.raises(InputError, match="no class has two images, so none is left for testing"):
        open_class_images("imagefolder", tmp_path, "test")


def test_class_folder_without_images_is_named(folder):
    (folder / "emu").mkdir()
    (folder / "emu" / "notes.txt").touch()
    with pytest.raises(InputError, match="emu: class folder without images"):
        open_class_images("imagefolder", folder)


def test_unknown_names_and_missing_folders(tmp_path):
    with pytest.raises(InputError, match="did you mean 'food101'"):
        open_class_images("food-101", tmp_path)
    with pytest.raises(InputError, match="did you mean 'validation'"):
        open_class_images("food101", tmp_path, "valid")
    with pytest.raises(InputError, match="--data_dir"):
        open_class_images("food101")
    for name in ("food101", "flowers102", "oxford_iiit_pet", "cifar10", "cifar100"):
        with pytest.raises(InputError, match=rf"{name}: not found in .* \(looked for .*\); --download"):
            open_class_images(name, tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        open_class_images("imagefolder", tmp_path / "absent")
    with pytest.raises(InputError, match="no class folders"):
        open_class_images("imagefolder", tmp_path)


def test_food101_layout_from_the_folder_or_its_parent(tmp_path):
    root = tmp_path / "food-101"
    write_food101(tmp_path, ("sushi", "apple_pie"), train=1, test=1)
    for place in (tmp_path, root):
        train, test = (open_class_images("food101", place, split) for split in ("train", "test"))
        assert train.class_names == ["apple_pie", "sushi"]
        assert train.labels.tolist() == [1, 0] and test.labels.tolist() == [0, 1]
        assert test.path(1).endswith("images/sushi/2.jpg")
    with pytest.raises(InputError, match="food101 has no validation split"):
        open_class_images("food101", root, "validation")
    (root / "images" / "sushi" / "1.jpg").unlink()
    with pytest.raises(InputError, match="listed but not there"):
        open_class_images("food101", root)


def test_flowers102_layout(tmp_path):
    from scipy.io import savemat

    root = tmp_path / "flowers-102"
    for number in range(1, 5):
        save(root / "jpg" / f"image_{number:05d}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.array([[102, 1, 5, 1]])})
    savemat(root / "setid.mat", {"trnid": [[1, 2]], "valid": [[3]], "tstid": [[4]]})
    train = open_class_images("flowers102", tmp_path)
    assert train.labels.tolist() == [101, 0] and len(train.class_names) == 102
    assert train.path(1).endswith("image_00002.jpg")
    assert open_class_images("flowers102", tmp_path, "validation").labels.tolist() == [4]
    assert open_class_images("flowers102", tmp_path, "test").labels.tolist() == [0]


def test_oxford_iiit_pet_layout(tmp_path):
    root = tmp_path / "oxford-iiit-pet"
    rows = ["Abyssinian_1 1 1 1", "great_pyrenees_7 2 2 1"]
    for row in rows:
        save(root / "images" / f"{row.split()[0]}.jpg")
    (root / "annotations").mkdir()
    (root / "annotations" / "trainval.txt").write_text("\n".join(rows))
    (root / "annotations" / "test.txt").write_text("\n".join(reversed(rows)))
    train = open_class_images("oxford_iiit_pet", tmp_path)
    assert train.class_names == ["Abyssinian", "great_pyrenees"] and train.labels.tolist() == [0, 1]
    assert open_class_images("oxford_iiit_pet", tmp_path, "test").labels.tolist() == [1, 0]
    (root / "annotations" / "test.txt").write_text(rows[1])
    test = open_class_images("oxford_iiit_pet", tmp_path, "test")
    assert test.labels.tolist() == [1] and test.class_names == train.class_names


@pytest.mark.parametrize("name", CIFAR)
def test_cifar_binary_version(tmp_path, name):
    pixels = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    pixels[0, ..., 0] = 255
    train_files = write_cifar(tmp_path, name, ["airplane", "automobile"], [1, 0], pixels)
    train = open_class_images(name, tmp_path)
    assert train.class_names == ["airplane", "automobile"] and train.labels.tolist() == [1, 0] * len(train_files)
    assert train.read(0).getpixel((5, 9)) == (255, 0, 0)
    assert train.path(1) == f"{name}/train[1]"
    train_files[0].write_bytes(train_files[0].read_bytes()[:-1])
    with pytest.raises(InputError, match="damaged"):
        open_class_images(name, tmp_path)


def test_datasets_package_from_a_local_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (4, 4), (k, 0, 0)) for k in range(20)]
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"img": pictures, "kind": ["b", "a"] * 10}, features=features)
    table.save_to_disk(tmp_path / "saved")
    columns = {"image_column": "img", "label_column": "kind"}
    train, test = (open_class_images(str(tmp_path / "saved"), split=split, **columns) for split in ("train", "test"))
    assert train.class_names == ["a", "b"] and len(train) == 16 and len(test) == 4
    assert {(test.read(i).getpixel((0, 0))[0] + test.labels[i]) % 2 for i in range(4)} == {1}
    encoded = table.cast_column("img", datasets.Image(decode=False))["img"]
    hashes = {hashlib.sha256(entry["bytes"]).hexdigest() for entry in encoded}
    with monkeypatch.context() as patch:  # hashed without being decoded
        patch.setattr("onelora_vision.data.classes.hub.decode_image", None)
        assert {*content_hashes(train), *content_hashes(test)} == hashes and len(hashes) == 20
    with pytest.raises(InputError, match=r"no column 'image' \(--image_column\); .*'?img"):
        open_class_images(str(tmp_path / "saved"), label_column="kind")


def test_parquet_files_in_a_local_folder(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    (tmp_path / "pets").mkdir()
    for split, count in (("train", 6), ("validation", 4), ("test", 2)):
        pictures = [Image.new("RGB", (4, 4), (k, 0, 0)) for k in range(count)]
        table = datasets.Dataset.from_dict({"image": pictures, "label": [k % 2 for k in range(count)]}, features)
        table.to_parquet(tmp_path / "pets" / f"{split}-00000-of-00001.parquet")
    options = {"cache_dir": str(tmp_path / "cache")}
    train, validation, test = (
        open_class_images(str(tmp_path / "pets"), split=split, **options) for split in ("train", "validation", "test")
    )
    assert [len(images) for images in (train, validation, test)] == [6, 4, 2]
    assert train.class_names == ["cat", "dog"] and train.labels.tolist() == [0, 1] * 3
    assert [train.read(k).getpixel((0, 0))[0] for k in (5, 0, 3)] == [5, 0, 3]
    assert len({*content_hashes(train)}) == 6


def test_hub_ids_are_not_fetched_unasked():
    with pytest.raises(InputError, match="--download"):
        open_class_images("someone/pictures")


def test_validation_images_are_the_data_sets_own_or_a_part_of_the_training_images(folder):
    train, validation = open_training_images("embedded", validation_fraction=0.5)
    assert validation.split == "validation" and len(validation) == len(
        open_class_images("embedded", split="validation")
    )
    assert len(train) == len(open_class_images("embedded"))
    train, validation = open_training_images("imagefolder", folder, validation_fraction=0.25)
    assert (len(train), len(validation)) == (18, 6) and validation.split == "validation"
    assert not set(train.images) & set(validation.images)


def test_digits_need_no_folder_and_are_read_as_pictures():
    test = open_class_images("embedded", split="test")
    assert test.class_names == [*"0123456789"] and test.read(0).size == (32, 32) and test.path(3) == "digits/test[3]"


def test_what_a_data_set_ignores_are_arguments_of_what_opens_it():
    opened = (open_class_images, open_training_images, ClassImageDataset)
    arguments = set().union({"cache_images"}, *(inspect.signature(function).parameters for function in opened))
    assert all(row.ignores < arguments for row in FORMATS.values())
    assert ignored_by("someone/pictures") == frozenset()


def test_an_empty_split_is_a_missing_one(monkeypatch):
    def opened(root, split, *, download, seed):
        images = [Image.new("RGB", (8, 8))] if split == "train" else []
        return ClassImages(images, [0] * len(images), ["a"], name="mine", split=split)

    monkeypatch.setitem(FORMATS, "mine", ClassFormat(opened))
    with pytest.raises(MissingSplit, match="dataset mine: its validation split holds no images"):
        open_class_images("mine", ".", "validation")
    assert open_training_images("mine", ".", validation_fraction=0.1)[1] is None
