import numpy as np
import pytest
import torch
from PIL import Image

from onelora_vision.data.generation import SquareCrop


def gradient(width, height):
    """An image whose red channel is its column and whose green channel is its row, as shares of 255."""
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(64, 64), (200, 90), (33, 300), (7, 5), (511, 257)])
def test_the_centre_of_any_image(size):
    image = SquareCrop(32)(gradient(*size))
    assert image.shape == (3, 32, 32) and image.min() >= 0 and image.max() <= 1
    short, width = min(size), size[0]
    # The middle of the crop is the middle of the image; the crop spans short/width of its width.
    assert image[0].mean().item() == pytest.approx(0.5, abs=0.03)
    assert image[1].mean().item() == pytest.approx(0.5, abs=0.03)
    if short >= 32:
        assert (image[0, 16, -1] - image[0, 16, 0]).item() == pytest.approx(short / width, abs=0.08)


def test_random_crop_and_flip_follow_the_global_generator():
    transform, image = SquareCrop(16, center_crop=False, random_flip=True), gradient(100, 30)
    torch.manual_seed(1)
    first = transform(image)
    torch.manual_seed(1)
    assert torch.equal(transform(image), first)
    crops = [transform(image) for _ in range(20)]
    directions = {bool(crop[0, 0, -1] > crop[0, 0, 0]) for crop in crops}
    assert directions == {True, False}
    assert len({round(crop[0].mean().item(), 2) for crop in crops}) > 5
