import os
import pickle

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image

from onelora_vision.data import latents
from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.generation import SquareCrop
from onelora_vision.data.latents import LatentStore, cache_latents, posterior
from onelora_vision.data.stream import SampleRef
from onelora_vision.errors import InputError


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, latent_channels=4).eval()


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / "images" / f"{index}.png" for index in range(7)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (18, 24, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


FLIPPED = SquareCrop(16, random_flip=True)


def dataset_of(files, transform=FLIPPED, on_bad_image="error"):
    source = ClassImages(files, [index % 2 for index in range(len(files))], ["a", "b"], "set", "train")
    return ClassImageDataset(source, transform, on_bad_image)


def store_of(dataset):
    return LatentStore(dataset.shards.paths[0].parent)


@pytest.fixture
def cached(vae, tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "SHARD_BYTES", 2 * 3 * 2 * 4 * 16 * 16 * 4)  # of three images, so of two batches

    def build(dataset, vae_hash="hash"):
        return cache_latents(dataset, vae, vae_hash, tmp_path / "cache", Accelerator(), batch_size=2)

    return build


def encoded(monkeypatch):
    """Counts the images that are encoded."""
    counts = []
    original = latents.posterior
    monkeypatch.setattr(latents, "posterior", lambda vae, x: counts.append(len(x)) or original(vae, x))
    return counts


def test_items_are_the_posteriors_of_the_same_images_with_the_same_flips(cached, vae, files):
    plain, fast = dataset_of(files), cached(dataset_of(files))
    assert len(fast) == 7 and fast.class_names == ["a", "b"]
    flips = set()
    for index in range(7):
        for seed in (1, 2, 3):
            ref = SampleRef(index, seed)
            expected, item = plain[ref], fast[ref]
            mean, std = posterior(vae, expected.pop("image")[None])
            torch.testing.assert_close(item.pop("mean"), mean[0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(item.pop("std"), std[0], rtol=1e-4, atol=1e-5)
            assert item == expected
            flips.add(torch.equal(plain[ref]["image"], plain[SampleRef(index, 1)]["image"]))
    assert flips == {True, False}


def test_only_what_changed_is_encoded_again(cached, files, tmp_path, monkeypatch):
    cached(dataset_of(files))
    counts = encoded(monkeypatch)
    cached(dataset_of(files))
    assert counts == []
    Image.new("RGB", (24, 18), "red").save(files[2])
    assert cached(dataset_of(files))[2]["mean"].std() != 0 and sum(counts) == 2  # the image and its mirror image
    cached(dataset_of(files, SquareCrop(16)))  # the flip is not part of what is kept
    assert sum(counts) == 2
    cached(dataset_of(files, SquareCrop(8)))
    cached(dataset_of(files), vae_hash="another")
    assert sum(counts) == 2 + 14 + 14 and len(list((tmp_path / "cache").iterdir())) == 3


def test_a_stopped_build_goes_on(cached, files, monkeypatch):
    original, written = LatentStore.write, []

    def dies_after_the_first(self, *args):
        if written:
            raise KeyboardInterrupt
        written.append(args[0])
        original(self, *args)

    monkeypatch.setattr(LatentStore, "write", dies_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        cached(dataset_of(files))
    monkeypatch.setattr(LatentStore, "write", original)
    counts = encoded(monkeypatch)
    assert len(store_of(cached(dataset_of(files)))) == 7
    assert sum(counts) == 2 * (7 - len(written[0])) == 6


def test_a_bad_image_is_an_error_or_replaced_by_the_next(cached, files):
    with open(files[3], "wb") as file:
        file.write(b"no image")
    with pytest.raises(InputError, match=r"3\.png"):
        cached(dataset_of(files))
    plain, fast = dataset_of(files, on_bad_image="skip"), cached(dataset_of(files, on_bad_image="skip"))
    for key in ("index", "label", "path", "seed"):
        assert fast[SampleRef(3, 5)][key] == plain[SampleRef(3, 5)][key]
    assert fast[SampleRef(3, 5)]["index"] == 4


def test_what_cannot_be_cached_is_refused(cached, files, tmp_path):
    with pytest.raises(InputError, match="--center_crop"):
        cached(dataset_of(files, SquareCrop(16, center_crop=False)))
    with pytest.raises(InputError, match="are new in every epoch"):
        cached(torch.utils.data.TensorDataset(torch.zeros(3)))


@pytest.mark.parametrize("content", [b"cut", b"\x02" + bytes(7) + b"{}"])
def test_a_damaged_shard_is_a_warning_and_its_images_are_encoded_again(cached, files, caplog, monkeypatch, content):
    shard = sorted(store_of(cached(dataset_of(files))).folder.iterdir())[0]
    shard.write_bytes(content)
    counts = encoded(monkeypatch)
    assert len(store_of(cached(dataset_of(files)))) == 7 and sum(counts) in (2, 6)
    assert len(caplog.messages) == 1 and f"{shard} is damaged" in caplog.messages[0]


def test_a_cache_that_cannot_be_written_leaves_the_images_as_they_are(cached, files, tmp_path, caplog):
    (tmp_path / "cache").touch()  # a file in the place of the folder
    dataset = dataset_of(files)
    assert cached(dataset) is dataset
    assert len(caplog.messages) == 1 and "could not write" in caplog.messages[0]


def test_workers_read_it_too(cached, files):
    fast = cached(dataset_of(files))
    again = pickle.loads(pickle.dumps(fast))
    assert torch.equal(again[1]["mean"], fast[1]["mean"])


@pytest.mark.parametrize(("dtype", "error"), [("fp16", 2**-11), ("bf16", 2**-8)])
def test_half_precision_halves_the_files_and_rounds_once(vae, files, tmp_path, dtype, error):
    full, half = (
        cache_latents(dataset_of(files), vae, "hash", tmp_path / "cache", Accelerator(), 2, dtype=kind)
        for kind in ("fp32", dtype)
    )
    assert store_of(full).folder != store_of(half).folder and len(store_of(half)) == 7
    sizes = [sum(path.stat().st_size for path in store_of(kept).folder.iterdir()) for kept in (full, half)]
    assert 0.5 < sizes[1] / sizes[0] < 0.55
    for index in range(7):
        for name in ("mean", "std"):
            exact, rounded = full[index][name], half[index][name]
            assert rounded.dtype == latents.DTYPES[dtype] and not torch.equal(exact, rounded.float())
            torch.testing.assert_close(rounded.float(), exact, rtol=error, atol=1e-7)


def test_what_half_precision_cannot_hold_is_refused(files, tmp_path, monkeypatch):
    large = torch.full((4, 4, 2, 2), 1e5)
    monkeypatch.setattr(latents, "posterior", lambda vae, x: (large, large))
    with pytest.raises(InputError, match="too large for fp16"):
        cache_latents(dataset_of(files), None, "hash", tmp_path, Accelerator(), 2, dtype="fp16")


def test_shards_grow_until_they_have_their_bytes_or_took_their_time(monkeypatch):
    batches = [(np.arange(2), torch.zeros(2, 2, 1, 1, 1), torch.zeros(2, 2, 1, 1, 1))] * 5  # 32 bytes each
    monkeypatch.setattr(latents, "SHARD_BYTES", 60)
    assert [len(found) for found, *_ in latents._shards(iter(batches))] == [4, 4, 2]
    monkeypatch.setattr(latents, "SHARD_SECONDS", 0)
    assert [len(found) for found, *_ in latents._shards(iter(batches))] == [2] * 5


def test_what_a_killed_build_left_is_deleted_after_an_hour(cached, files):
    folder = store_of(cached(dataset_of(files))).folder
    fresh, old = (folder / f".onelora-partial-{name}.safetensors" for name in ("fresh", "old"))
    other = folder / "mine.safetensors"
    for path in (fresh, old, other):
        path.write_bytes(b"half")
        os.utime(path, (0, 0) if path != fresh else None)
    cached(dataset_of(files))
    assert fresh.exists() and other.exists() and not old.exists()


def test_machines_that_see_different_folders_are_an_error(cached, files, monkeypatch):
    """As if another process had found two images fewer: those that it did not encode itself."""

    def gathered(values):
        return [*values, values[0] + 2] if type(values[0]) is int else values

    cached(dataset_of(files))
    monkeypatch.setattr(latents, "gather_object", gathered)
    with pytest.raises(InputError, match=r"do not find the same latents there.*--latents_dir"):
        cached(dataset_of(files))
