"""Real images next to drawings: where they are from is true, and a file opens nothing."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from app.library import Library, read_entry
from app.mix import Mix
from app.real import real_images
from onelora_vision.data.classes.formats import open_class_images


@pytest.fixture
def entry(make_adapter):
    """An adapter that does not say what it was trained on."""
    return read_entry(make_adapter("generation", 1), "mine", "upload")


def found(entry, classes, folder):
    return real_images(Mix.of([(entry, 1.0)], "generation"), classes, folder)


def write(folder, *colours):
    """Pictures of one colour each."""
    folder.mkdir(parents=True)
    for number, colour in enumerate(colours):
        Image.new("RGB", (8, 8), colour).save(folder / f"{number:05}-x.png")


def test_of_the_shipped_adapter_it_is_handwriting_that_no_training_has_seen(tmp_path):
    shipped = next(one for one in Library().entries()[0] if one.name == "handwriting-dit")
    real = found(shipped, ["4", "no such class"], tmp_path / "real")
    assert real.text == "Real handwriting, of the built-in test images"
    assert [picture.caption for picture in real.pictures] == ["4", "4"]
    test = open_class_images("embedded", split="test")
    fours = [test.read(int(index)).tobytes() for index in (test.labels == 4).nonzero()[0]]
    assert all(Image.open(picture.image).tobytes() in fours for picture in real.pictures)


def test_of_a_training_it_is_what_was_sent(entry, tmp_path):
    write(tmp_path / "job" / "data" / "train" / "cat", "red", "green", "blue")
    write(tmp_path / "job" / "data" / "test" / "cat", "white")
    write(tmp_path / "secret", "black")
    trained = replace(entry, source="training", path=tmp_path / "job" / "run" / "adapter")
    real = found(trained, ["cat", "../../../secret", "dog"], tmp_path / "real")
    assert real.text == "Real images, of those sent for mine"
    colours = [np.asarray(Image.open(picture.image))[0, 0].tolist() for picture in real.pictures]
    assert colours == [[255, 0, 0], [0, 128, 0]]
    assert found(replace(trained, source="upload"), ["cat"], tmp_path / "real") is None


def test_of_any_other_adapter_it_is_the_picture_in_its_folder_or_nothing(entry, tmp_path):
    assert found(entry, ["1"], tmp_path / "real") is None
    write(tmp_path / "folder", "red")
    (tmp_path / "folder" / "00000-x.png").rename(tmp_path / "folder" / "samples.png")
    real = found(replace(entry, path=tmp_path / "folder"), ["1"], tmp_path / "real")
    assert real.text == "From the folder of mine" and [picture.caption for picture in real.pictures] == ["samples.png"]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "samples.png").symlink_to(tmp_path / "folder" / "samples.png")
    assert found(replace(entry, path=tmp_path / "linked"), ["1"], tmp_path / "real") is None
    (tmp_path / "folder" / "samples.png").write_bytes(b"no picture")
    assert found(replace(entry, path=tmp_path / "folder"), ["1"], tmp_path / "real") is None
