"""Training sets decoded into shared memory: the same items bit for bit, without the files."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader

from onelora_vision.data import decoded
from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.decoded import PICTURE, decode_all
from onelora_vision.data.depth.caps import Caps
from onelora_vision.data.depth.dataset import DepthDataset, InputSize
from onelora_vision.data.depth.frames import FilePair, FrameFiles
from onelora_vision.data.generation import SquareCrop
from onelora_vision.data.stream import SampleRef, collate
from onelora_vision.errors import InputError


@pytest.fixture
def files(tmp_path):
    """Photographs of unlike sizes, one of them turned by its EXIF data; the second is no image."""
    rng, paths = np.random.default_rng(0), []
    for number in range(6):
        size = (61 + 9 * number, 80 - 7 * number)
        picture = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 3 else 1
        paths.append(tmp_path / f"{number}.jpg")
        picture.save(paths[-1], exif=exif)
    paths[1].write_bytes(b"no image")
    return paths


def training_transform():
    return create_transform(16, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", scale=(0.3, 1), re_prob=0.5)


@pytest.mark.parametrize(
    "transform",
    [training_transform(), SquareCrop(16, center_crop=False, random_flip=True), SquareCrop(48)],
    ids=["classification", "generation", "centre"],
)
def test_images_are_the_same_bit_for_bit_and_no_longer_read(files, transform):
    source = ClassImages([str(path) for path in files], [0] * 6, ["one"], "photos", "train")
    plain, kept = (ClassImageDataset(source, transform, on_bad_image="skip") for _ in range(2))
    refs = [SampleRef(index, seed) for index in range(6) for seed in (1, 2)]
    expected = plain.__getitems__(refs)
    kept.keep_decoded()
    for path in files:
        path.unlink()
    for ours, theirs in zip(kept.__getitems__(refs), expected, strict=True):
        assert torch.equal(ours.pop("image"), theirs.pop("image")) and ours == theirs
    assert kept.num_bad_images == 1
    with pytest.raises(InputError, match=r"1\.jpg"):
        fresh = ClassImageDataset(source, transform)
        fresh.keep_decoded()
        fresh[1]


def test_depth_is_the_same_bit_for_bit_and_no_longer_read(tmp_path):
    rng, pairs = np.random.default_rng(0), []
    for number, (height, width) in enumerate([(21, 33), (30, 19)]):
        image, depth = rng.integers(0, 256, (height, width, 3), np.uint8), rng.uniform(-3, 90, (height, width))
        depth[3] = np.nan
        mask = rng.random((height, width)) < 0.8
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        np.save(tmp_path / f"{number}.npy", depth.astype(np.float32))
        np.save(tmp_path / f"{number}-mask.npy", mask)
        parts = (tmp_path / f"{number}{end}" for end in (".png", ".npy"))
        pairs.append(FilePair(*parts, mask=tmp_path / f"{number}-mask.npy"))
    sets = [
        DepthDataset(FrameFiles(pairs), Caps(1, 80), InputSize.parse(size, 4), train=True)
        for size in (12, 12, "8x16", "8x16")
    ]
    refs = [SampleRef(index, seed) for index in (0, 1) for seed in range(4)]
    expected = [[plain[ref] for ref in refs] for plain in sets[::2]]
    for kept in sets[1::2]:
        kept.keep_decoded()
    for path in tmp_path.iterdir():
        path.unlink()
    for kept, theirs in zip(sets[1::2], expected):
        for ours, other in zip([kept[ref] for ref in refs], theirs, strict=True):
            assert all(torch.equal(ours.pop(name), other.pop(name)) for name in ("image", "depth", "valid"))
            assert ours == other


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_share_the_images(files, context):
    files.pop(1)
    source = ClassImages([str(path) for path in files], [0] * 5, ["one"], "photos", "train")
    kept = ClassImageDataset(source, SquareCrop(16))
    alone = torch.stack([item["image"] for item in kept.__getitems__(range(5))])
    kept.keep_decoded()
    for path in files:
        path.unlink()
    assert all(piece.is_shared() for piece in kept._decoded.pieces)
    loader = DataLoader(kept, batch_size=5, num_workers=1, collate_fn=collate, multiprocessing_context=context)
    assert torch.equal(next(iter(loader))["image"], alone)


def test_pieces_hold_items_whose_sizes_no_sample_foretold(monkeypatch):
    """One of the unsampled pictures is large, and memory is taken in small pieces."""
    monkeypatch.setattr(decoded, "_PIECE", 4000)
    sizes = [(7, 5)] * 200
    sizes[77] = (60, 50)
    pictures = [np.random.default_rng(k).integers(0, 256, (*size, 3), np.uint8) for k, size in enumerate(sizes)]
    kept = decode_all(lambda index: (pictures[index],), 200, PICTURE, "pictures")
    assert all(np.array_equal(kept[index][0], picture) for index, picture in enumerate(pictures))
    assert max(len(piece) for piece in kept.pieces) == 9000 and len(kept.pieces) > 3


def test_what_does_not_fit_is_refused_before_it_is_decoded(monkeypatch):
    read, picture = [], np.zeros((100, 100, 3), np.uint8)
    monkeypatch.setattr(decoded, "available_shared_memory", lambda: 2 * 10**9)
    monkeypatch.setattr(decoded, "processes_here", lambda: 4)
    with pytest.raises(
        InputError, match=r"the 20,000 decoded images of pets take about 0\.6 GB in each of 4 proc.* 2 GB"
    ):
        decode_all(lambda index: read.append(index) or (picture,), 20_000, PICTURE, "pets")
    assert len(read) == 32


def test_images_that_grow_beyond_the_memory_are_refused(monkeypatch):
    left = iter([10**6, 10**6, 10**4])
    monkeypatch.setattr(decoded, "available_shared_memory", lambda: next(left))
    monkeypatch.setattr(decoded, "_PIECE", 20_000)
    random_sizes = random.Random(0)
    with pytest.raises(InputError, match=r"1e-05 GB of memory are free"):
        decode_all(lambda index: (np.zeros((random_sizes.randint(20, 90), 10, 3), np.uint8),), 40, PICTURE, "pictures")
