import json

import pytest
from tiny_benchmarks import write_fgvc

from onelora_vision.data.classes import fgvc
from onelora_vision.data.classes.formats import open_class_images
from onelora_vision.errors import InputError


@pytest.fixture
def root(tmp_path):
    return write_fgvc(tmp_path / "data")


def test_a_data_set_has_its_splits_and_the_classes_of_its_training_split(root):
    sizes = {split: len(open_class_images("fgvc/NABirds", root, split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 6, "validation": 3, "test": 4}
    images = open_class_images("fgvc/NABirds", root, "test")
    assert images.class_names == ["36", "295", "1008"]  # in order of the numbers
    assert images.labels.tolist() == [1, 2, 0, 1]
    assert images.read(3).size == (32, 32) and images.path(0).endswith("nabirds/images/test/0.jpg")
    assert open_class_images("fgvc/CUB_200_2011", root).class_names == ["001", "020", "132"]
    cars = open_class_images("fgvc/StanfordCars", root)
    assert cars.path(0).endswith("Stanford-cars/train/0.jpg") and cars.name == "fgvc/StanfordCars"


def test_folders_are_found_by_any_spelling_also_as_data_dir_itself(root):
    assert fgvc.tasks_in(root) == ["CUB_200_2011", "NABirds", "StanfordCars"]
    (root / "Stanford-cars").rename(root / "stanford_car")
    assert len(open_class_images("fgvc/stanford-cars", root)) == 6
    assert len(open_class_images("fgvc/stanford-cars", root / "stanford_car")) == 6
    with pytest.raises(InputError, match=r"nabirds: no folder StanfordCars with train.json in it"):
        open_class_images("fgvc/StanfordCars", root / "nabirds")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("fgvc/Aircraft", None, "fgvc/Aircraft: no such dataset"),
        ("fgvc/StanfordDog", None, "no folder StanfordDogs with train.json"),
        ("fgvc/NABirds", "{", "test.json: not JSON"),
        ("fgvc/NABirds", '{"a.jpg": 36, "a.jpg": 295}', "test.json: not JSON .*a.jpg"),
        ("fgvc/NABirds", "[]", "expected an object of image paths and their classes"),
        ("fgvc/NABirds", "{}", "expected an object of image paths and their classes"),
        ("fgvc/NABirds", {"a.jpg": True}, "neither all whole numbers nor all names"),
        ("fgvc/NABirds", {"a.jpg": 36, "b.jpg": "36"}, "neither all whole numbers nor all names"),
        ("fgvc/NABirds", {"a.jpg": [36]}, "neither all whole numbers nor all names"),
        ("fgvc/NABirds", {"a.jpg": 7}, "test.json: no such class in the training split: 7"),
        ("fgvc/NABirds", {"../secret.jpg": 36}, "secret.jpg: this file is listed, but lies outside of"),
        ("fgvc/NABirds", {"/etc/secret.jpg": 36}, "secret.jpg: this file is listed, but lies outside of"),
        ("fgvc/NABirds", {"gone.jpg": 36}, "images/gone.jpg: no such image file"),
    ],
)
def test_what_is_wrong_is_one_line(root, name, content, message):
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (root / "nabirds" / "test.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        open_class_images(name, root, "test").read(0)
    assert "\n" not in str(caught.value)


def test_a_missing_and_an_endless_list_are_refused(root, monkeypatch):
    (root / "nabirds" / "val.json").unlink()
    with pytest.raises(InputError, match=r"val.json: cannot be read"):
        open_class_images("fgvc/NABirds", root, "validation")
    monkeypatch.setattr(fgvc, "_MOST_BYTES", 10)
    with pytest.raises(InputError, match=r"train.json: over 0 MiB, too large for a list of images"):
        open_class_images("fgvc/NABirds", root)
