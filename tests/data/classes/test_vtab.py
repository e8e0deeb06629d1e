import pytest
from tiny_benchmarks import write_vtab

from onelora_vision.data.classes.formats import open_class_images
from onelora_vision.data.classes.vtab import TASKS
from onelora_vision.errors import InputError


@pytest.fixture
def root(tmp_path):
    return write_vtab(tmp_path / "vtab")


def test_a_task_has_its_splits(root):
    sizes = {split: len(open_class_images("vtab/dtd", root, split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 6, "validation": 3, "test": 4}
    images = open_class_images("vtab/dtd", root, "test")
    assert images.class_names == ["0", "1", "2"] and images.labels.tolist() == [0, 1, 2, 0]
    assert images.read(3).size == (32, 32) and len(TASKS) == 19


def test_training_and_validation_are_joined(root):
    train, validation = (open_class_images("vtab/dtd", root, split) for split in ("train", "validation"))
    both = train.joined(validation)
    assert len(both) == 9 and both.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert both.images == [*train.images, *validation.images]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("vtab/dtdd", None, "did you mean 'dtd'"),
        ("vtab/svhn", None, "has no train800.txt"),
        ("vtab/dtd", "images/a.jpg", "the line 'images/a.jpg' is not 'path label'"),
        ("vtab/dtd", "a.jpg 7", "class 7, but training has 0 to 2"),
        ("vtab/dtd", "", "lists no images"),
        ("vtab/dtd", "../../secret.jpg 1", "secret.jpg: this file is listed, but lies outside of"),
        ("vtab/dtd", "/etc/secret.jpg 1", "secret.jpg: this file is listed, but lies outside of"),
        ("vtab", None, "vtab/: no such task; known tasks: cifar"),
    ],
)
def test_what_is_wrong_is_one_line(root, name, text, message):
    if text is not None:
        (root / "dtd" / "test.txt").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        open_class_images(name, root, "test").read(0)
    assert "\n" not in str(caught.value)
