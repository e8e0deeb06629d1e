import pytest
import torch

from onelora_vision.data.stream import SampleRef
from onelora_vision.data.synthetic.digits import INK, PAPER, HandwrittenDigits, ink_masks, split_indices
from onelora_vision.errors import InputError


def test_splits_are_disjoint_complete_and_stratified():
    parts = [split_indices(name) for name in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1078, 269, 450]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1797))
    labels = ink_masks()[1]
    for part in parts:
        counts = labels[part].bincount(minlength=10)
        assert counts.max() - counts.min() <= 6


def test_images_are_blue_on_cream():
    images = HandwrittenDigits("validation").images()
    assert images.shape == (269, 3, 32, 32) and images.min() >= 0 and images.max() <= 1
    darkest = images.mean(1).flatten(1).argmin(1)
    pixels = images.flatten(2)[torch.arange(len(images)), :, darkest]
    assert torch.allclose(pixels, INK.expand_as(pixels), atol=0.02)
    assert torch.allclose(images[:, :, 0, 0], PAPER.expand(len(images), 3))


def test_augmentation_comes_from_the_seed_and_stays_small():
    plain, moved = HandwrittenDigits("train"), HandwrittenDigits("train", augment=True)
    again = moved[SampleRef(4, 8)]["image"]
    assert torch.equal(moved[SampleRef(4, 8)]["image"], again)
    assert not torch.equal(moved[SampleRef(4, 9)]["image"], again)
    difference = (again - plain[SampleRef(4, 8)]["image"]).abs().mean()
    assert 0.001 < difference < 0.15
    assert torch.equal(plain[4]["image"], plain[SampleRef(4, 1)]["image"])


def test_a_sample_is_the_same_in_every_batch():
    moved = HandwrittenDigits("train", augment=True)
    refs = [SampleRef(index, 31 * index) for index in range(40)]
    together = moved.__getitems__(refs)
    for sample, ref in zip(together, refs):
        alone = moved[ref]
        assert torch.equal(sample["image"], alone["image"])
        assert (sample["label"], sample["seed"]) == (alone["label"], ref.seed)


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
        ({"few_shot": 500}, "the split has 1 to 104"),
    ],
)
def test_wrong_choices_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        HandwrittenDigits(**arguments)
