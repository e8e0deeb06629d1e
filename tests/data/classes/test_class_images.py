import pytest
from PIL import Image

from onelora_vision.data.classes.formats import open_class_images
from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.generation import SquareCrop
from onelora_vision.errors import InputError


def save(path, color="gray", size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_only_the_middle_of_a_very_long_picture_is_read(tmp_path, caplog):
    save(tmp_path / "a" / "long.png", size=(4000, 2))
    save(tmp_path / "a" / "wide.png", size=(16, 2))
    images = ClassImages([tmp_path / "a" / name for name in ("long.png", "wide.png")], [0, 0], ["a"], "set", "train")
    assert [images.read(index).size for index in (0, 0, 1)] == [(16, 2)] * 3
    assert len(caplog.messages) == 1 and "of 4000x2 pixels only the middle 16 are used" in caplog.messages[0]
    assert SquareCrop(8)(images.read(0)).shape == (3, 8, 8)


def test_labels_and_images_must_fit():
    with pytest.raises(InputError, match="2 images but 1 labels"):
        ClassImages(["a", "b"], [0], ["x"], "d", "train")
    with pytest.raises(InputError, match="images without a label cannot be used"):
        ClassImages(["a", "b"], [0, None], ["x"], "d", "train")
    with pytest.raises(InputError, match="labels from -1 to 0"):
        ClassImages(["a", "b"], [0, -1], ["x"], "d", "test")


def test_few_shot_and_subset(folder):
    train = open_class_images("imagefolder", folder)
    few = train.few_shot(3, seed=1)
    assert [few.labels.tolist().count(k) for k in range(3)] == [3] * 3
    assert few.images == train.few_shot(3, seed=1).images != train.few_shot(3, seed=2).images
    with pytest.raises(InputError, match="class 'cat' has 8 images, not 9"):
        train.few_shot(9)


def test_split_off_leaves_no_class_without_training_images():
    source = ClassImages(list("abcdef"), [0, 1, 1, 2, 2, 2], ["x", "y", "z"], "d", "train")
    rest, part = source.split_off(0.5, split="validation")
    assert sorted([*rest.images, *part.images]) == list("abcdef") and part.split == "validation"
    assert set(rest.labels) == {0, 1, 2} and set(part.labels) == {1, 2}
