import numpy as np
import pytest
from PIL import Image

from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.content import content_hash, content_hashes
from onelora_vision.errors import InputError


@pytest.fixture
def files(tmp_path):
    for index in range(3):
        Image.fromarray(np.full((6, 6, 3), 40 * (index % 2), np.uint8)).save(tmp_path / f"{index}.png")
    return [str(tmp_path / f"{index}.png") for index in range(3)]


def test_the_hash_is_of_the_content_alone(files):
    first, second, third = content_hashes(ClassImages(files, [0, 0, 0], ["a"], "set", "train"))
    assert first == third != second and len(first) == 64
    Image.new("RGB", (6, 6), "red").save(files[0])
    assert content_hash(files[0]) != first
    assert content_hash(Image.new("RGB", (6, 6))) != content_hash(Image.new("RGB", (4, 9)))


def test_a_missing_file_stands_for_itself(files):
    source = ClassImages([files[0], files[0] + ".gone"], [0, 0], ["a"], "set", "train")
    hashes = content_hashes(source)
    assert len(set(hashes)) == 2
    with pytest.raises(InputError, match="gone"):
        content_hash(source.images[1])
