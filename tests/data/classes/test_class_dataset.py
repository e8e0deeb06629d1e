import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.classes.formats import open_class_images
from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.stream import SampleRef
from onelora_vision.errors import InputError


def to_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


def save(path, color="gray", size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_the_item_depends_on_the_reference_alone(folder):
    from torchvision.transforms import v2

    augment = v2.Compose(
        [v2.PILToTensor(), v2.RandomCrop(4), v2.ColorJitter(0.5), v2.ToDtype(torch.float32, scale=True)]
    )
    for number in range(10):
        noise = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "cat" / f"{number}.png")
    dataset = ClassImageDataset(open_class_images("imagefolder", folder), augment)
    first, state = dataset[SampleRef(3, 11)], torch.get_rng_state()
    torch.rand(3)
    again, other = dataset[SampleRef(3, 11)], dataset[SampleRef(3, 12)]
    assert torch.equal(first["image"], again["image"]) and not torch.equal(first["image"], other["image"])
    assert {k: first[k] for k in ("label", "seed", "index")} == {"label": 0, "seed": 11, "index": 3}
    one, two = dataset.__getitems__([SampleRef(3, 12), SampleRef(3, 11)])
    assert torch.equal(one["image"], other["image"]) and torch.equal(two["image"], first["image"])
    torch.set_rng_state(state)
    dataset[3]
    dataset.__getitems__([1, 2])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_bad_image_is_an_error_or_replaced_by_the_next_one(folder, caplog):
    source = open_class_images("imagefolder", folder)
    for index in (4, 5, len(source) - 1):
        open(source.path(index), "wb").close()
    with pytest.raises(InputError, match=r"\.png: .*empty.*--on_bad_image skip"):
        ClassImageDataset(source, to_tensor)[4]
    dataset = ClassImageDataset(source, to_tensor, on_bad_image="skip")
    with caplog.at_level(logging.WARNING):
        items = [dataset[SampleRef(i, 0)] for i in (4, 4, 5, len(source) - 1)]
    assert [item["index"] for item in items] == [6, 6, 6, 0]
    assert items[0]["path"] == source.path(6) and items[0]["label"] == source.labels[6]
    assert dataset.num_bad_images == 3 and len(caplog.messages) == 3 and source.path(4) in caplog.messages[0]


def test_loader_workers_share_the_record_of_bad_images(folder):
    source = open_class_images("imagefolder", folder)
    open(source.path(2), "wb").close()
    dataset = ClassImageDataset(source, to_tensor, on_bad_image="skip")
    indices = torch.cat([batch["index"] for batch in DataLoader(dataset, batch_size=6, num_workers=2)])
    assert dataset.num_bad_images == 1
    assert indices.tolist() == [0, 1, 3, *range(3, 24)]


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").touch()
    (tmp_path / "a" / "1.png").touch()
    source = ClassImages([str(tmp_path / "a" / f"{k}.png") for k in (0, 1)], [0, 0], ["a"], "d", "train")
    with pytest.raises(InputError, match="none of its 2 images"):
        ClassImageDataset(source, to_tensor, on_bad_image="skip")[0]
    with pytest.raises(InputError, match="error or skip"):
        ClassImageDataset(source, to_tensor, on_bad_image="ignore")
