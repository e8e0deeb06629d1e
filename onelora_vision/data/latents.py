"""Caching the autoencoder's latents of images on disk, so each image is encoded only once.

An entry holds the posterior's mean and standard deviation for an image and its mirror image, so a run draws the same
latents with and without the cache. Entries are looked up by the hash of the image's content, in a folder named after
the autoencoder's weights and the transform. An edited image is therefore encoded again, and latents of another
autoencoder or crop are never used.

A folder holds shards of up to `SHARD_BYTES`, each written atomically. An interrupted build resumes at the next shard,
and processes or runs that build at the same time do not interfere.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader

from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.content import content_hashes
from onelora_vision.data.generation import SquareCrop
from onelora_vision.data.stream import SampleRef, SeededDataset, collate
from onelora_vision.errors import InputError, WriteError, one_line
from onelora_vision.runtime.progress import progress_bar
from onelora_vision.storage.cache import NoHomeFolder, combined_hash, default_cache, dispensable
from onelora_vision.storage.files import TEMPORARY_PREFIX, atomic_file

#: A shard is written once its entries have this many bytes or took this many seconds. This keeps the number of files
#: low, and little is lost if a build is killed. With 32 x 32 x 4 latents in fp32, it holds 4,096 images.
SHARD_BYTES, SHARD_SECONDS = 256 << 20, 120
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_BLOCK = 1 << 16  # hashes that are compared at a time
_ABANDONED = 3600  # seconds


@torch.no_grad()
def posterior(vae: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode images (N, 3, H, W) in [0, 1]: mean and standard deviation (N, C, h, w) of their latents, fp32."""
    parameter = next(vae.parameters())
    distribution = vae.encode((images * 2 - 1).to(parameter.device, parameter.dtype)).latent_dist
    return distribution.mean.float(), distribution.std.float()


class EncodedImages(torch.utils.data.Dataset):
    """Images encoded once and kept in memory: items have ``mean`` and ``std`` (C, h, w), ``label`` and ``seed``.

    Args:
        dataset: images without augmentation, with ``images()`` (N, 3, H, W) in [0, 1], ``labels`` and ``class_names``.
        vae: the autoencoder.
        batch_size: images per batch for encoding.
    """

    def __init__(self, dataset, vae: nn.Module, batch_size: int = 125):
        self.class_names, self.labels = dataset.class_names, dataset.labels
        parts = [posterior(vae, images) for images in dataset.images().split(batch_size)]
        self.mean, self.std = (torch.cat(values).cpu() for values in zip(*parts))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, ref: SampleRef | int) -> dict[str, Any]:
        ref = SampleRef.of(ref)
        label = int(self.labels[ref.index])
        return {"mean": self.mean[ref.index], "std": self.std[ref.index], "label": label, "seed": ref.seed}


class LatentShards:
    """Files of latents, each opened when an entry in it is first read.

    Args:
        paths: paths of the files, which are numbered by their position.
    """

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self._open: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def read(self, place: np.ndarray, mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Read mean and standard deviation (C, h, w) of an image or its mirror image, in the type they are stored in.

        Args:
            place: the numbers of the file and of the row in it.
        """
        number, row = place.tolist()
        if number not in self._open:
            with safe_open(self.paths[number], framework="pt") as shard:  # tensors of the mapped file, not copies
                self._open[number] = (shard.get_tensor("mean"), shard.get_tensor("std"))
        return tuple(values[row, int(mirrored)] for values in self._open[number])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}  # worker processes open the files themselves


class LatentStore:
    """The shards in one folder, as a map from image hashes to latents. Damaged shards are skipped with a warning.

    Attributes:
        folder: folder of the shards.
        shards: the files.
        digests: SHA-256 of the encoded images, (n, 32) bytes.
        places: shard and row of each image, (n, 2).
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        paths: list[Path] = []
        digests, places = [np.empty((0, 32), np.uint8)], [np.empty((0, 2), np.int32)]
        for path in sorted(self.folder.glob("latents-*.safetensors")):
            with dispensable((InputError,)):
                keys = _keys_of(path)
                digests.append(keys)
                rows = np.arange(len(keys), dtype=np.int32)
                places.append(np.stack([np.full_like(rows, len(paths)), rows], 1))
                paths.append(path)
        self.shards = LatentShards(paths)
        self.digests, self.places = np.concatenate(digests), np.concatenate(places)

    def __len__(self) -> int:
        return len(self.digests)

    def find(self, digests: np.ndarray) -> np.ndarray:
        """Look up the places (n, 2) of the images with these hashes (n, 32); -1 for missing ones."""
        places = np.full((len(digests), 2), -1, np.int32)
        if len(self):
            order = np.argsort(_prefixes(self.digests))
            rows = np.searchsorted(_prefixes(self.digests), _prefixes(digests), sorter=order).clip(max=len(self) - 1)
            rows = order[rows]
            for block in range(0, len(digests), _BLOCK):
                part = slice(block, block + _BLOCK)
                found = (self.digests[rows[part]] == digests[part]).all(1)
                places[part][found] = self.places[rows[part]][found]
        return places

    def write(self, digests: np.ndarray, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Add a shard of entries (n, 2, C, h, w), plain and mirrored. Its name is a hash of its keys.

        Only stores opened afterwards find it.
        """
        keys = [digest.tobytes().hex() for digest in digests]
        with atomic_file(self.folder / f"latents-{combined_hash(keys)[:16]}.safetensors") as temporary:
            tensors = {"mean": mean.contiguous(), "std": std.contiguous()}
            save_file(tensors, temporary, metadata={"keys": json.dumps(keys)})

    def clear_abandoned(self) -> None:
        """Delete incomplete files of killed builds, except those of the last hour, which another build may use."""
        for path in self.folder.glob(f"{TEMPORARY_PREFIX}*.safetensors"):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)


def _keys_of(path: Path) -> np.ndarray:
    """Read the hashes (n, 32) of a shard's images. Raises `InputError` if the file is damaged."""
    try:
        with safe_open(path, framework="pt") as shard:
            keys = json.loads(shard.metadata()["keys"])
            rows = {shard.get_slice(name).get_shape()[0] for name in ("mean", "std")}
        if rows != {len(keys)}:
            raise ValueError(f"{len(keys)} keys of {rows} entries")
        return np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), 32)
    # A header written by other programs has no such entries; JSON errors are ValueErrors.
    except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
        raise InputError(f"{path} is damaged ({one_line(error)}); its images are encoded again") from None


def _prefixes(digests: np.ndarray) -> np.ndarray:
    """The first 64 bits of hashes (n, 32), for sorting and distributing them; assumed to be unique."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0].astype(np.uint64)


class LatentDataset(SeededDataset):
    """A `ClassImageDataset` with latents: items have ``mean`` and ``std`` (C, h, w) instead of ``image``.

    The latents have the type that they are stored in. Mirroring is drawn as in the dataset's own transform. An image
    that could not be read has no entry, and is replaced as in the dataset.

    Args:
        dataset: the images.
        digests: their hashes (N, 32).
        store: their latents.
    """

    def __init__(self, dataset: ClassImageDataset, digests: np.ndarray, store: LatentStore):
        self.source, self.transform = dataset.source, dataset.transform
        self.shards, self.places = store.shards, store.find(digests)
        if (self.places < 0).all():
            raise InputError(f"{self.source.name}/{self.source.split}: none of its {len(self)} images can be read")

    def count_missing(self) -> int:
        """Count the images without latents, which could not be read."""
        return int((self.places[:, 0] < 0).sum())

    @property
    def class_names(self) -> list[str]:
        return self.source.class_names

    def identity(self) -> str:
        """The identity of the images, the same with and without cached latents."""
        return self.source.identity()

    def __len__(self) -> int:
        return len(self.places)

    def _item(self, ref: SampleRef, seed: Callable[[int], None]) -> dict[str, Any]:
        index = ref.index
        while self.places[index, 0] < 0:
            index = (index + 1) % len(self)
        seed(ref.seed)
        mirrored = self.transform.draw_flip()
        mean, std = self.shards.read(self.places[index], mirrored)
        label = int(self.source.labels[index])
        return {
            "mean": mean,
            "std": std,
            "label": label,
            "seed": ref.seed,
            "index": index,
            "path": self.source.path(index),
        }


def cache_latents(
    dataset: ClassImageDataset,
    vae: nn.Module,
    vae_hash: str,
    cache_dir: str | Path | None,
    accelerator: Accelerator,
    batch_size: int = 16,
    num_workers: int = 0,
    dtype: str = "fp32",
) -> LatentDataset | ClassImageDataset:
    """Encode all images of ``dataset`` that are not yet in the cache, each process its share, and open the latents.

    If the cache cannot be written, ``dataset`` itself is returned, with a warning.

    Args:
        dataset: images with a centred `SquareCrop`, with or without random flips.
        vae_hash: hash of the autoencoder's weights.
        cache_dir: parent folder of all caches (default: in the user's cache). The name of this cache's folder is a hash
            of the autoencoder, the transform and, if not fp32, ``dtype``.
        batch_size: images per batch for encoding; an image and its mirror image count as one.
        dtype: a key of `DTYPES`. Half precision halves the file size and rounds values by a relative error of at most
            1/2048 (fp16, from 6e-5 on) or 1/256 (bf16).

    Raises:
        InputError: the transform is random beyond mirroring, an image cannot be read (unless the dataset skips such
            images), a latent is too large for ``dtype``, or processes on several machines see different folders.
    """
    if not (isinstance(dataset, ClassImageDataset) and isinstance(dataset.transform, SquareCrop)):
        raise InputError("--cache_latents: these training images are new in every epoch; train without it")
    if not dataset.transform.center_crop:
        raise InputError("--cache_latents needs --center_crop: a random crop has no latent that could be kept")
    digests, done = content_hashes(dataset.source, accelerator).digests, False
    plain = replace(dataset.transform, random_flip=False)
    images = ClassImageDataset(dataset.source, plain, dataset.on_bad_image)
    with dispensable((NoHomeFolder, WriteError)):  # other errors concern the images or a lost process
        folder = Path(cache_dir) if cache_dir else default_cache() / "latents"
        parts = [vae_hash, str(plain), *([dtype] if dtype != "fp32" else [])]
        store = LatentStore(folder / combined_hash(parts)[:16])
        store.clear_abandoned()
        own = _own_part(digests, store.find(digests), accelerator)
        _encode(images, own, digests, vae, store, DTYPES[dtype], batch_size, num_workers, accelerator)
        done = True
    if not all(gather_object([done])):
        return dataset
    latents = LatentDataset(dataset, digests, LatentStore(store.folder))
    if len(set(gather_object([latents.count_missing()]))) > 1:
        raise InputError(
            f"{store.folder}: the processes of this run do not find the same latents there; on several machines "
            "--latents_dir must be a folder that all share"
        )
    return latents


def _own_part(digests: np.ndarray, places: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    """Choose which missing images this process encodes: one index per distinct image, in order."""
    missing = np.flatnonzero(places[:, 0] < 0)
    prefixes, first = np.unique(_prefixes(digests[missing]), return_index=True)
    # The hash determines an image's process, so none is left out when another run adds entries at the same time.
    own = prefixes % np.uint64(accelerator.num_processes) == accelerator.process_index
    return np.sort(missing[first[own]])


def _encode(images, indices, digests, vae, store, dtype, batch_size, num_workers, accelerator) -> None:
    loader = DataLoader(images, batch_size, sampler=indices, num_workers=num_workers, collate_fn=collate)
    hidden = not accelerator.is_local_main_process or not len(indices)
    with progress_bar(len(indices), desc="encoding images", unit="image", hidden=hidden) as bar:
        for found, mean, std in _shards(_entries(loader, indices, vae, dtype, bar)):
            store.write(digests[found], mean, std)


def _shards(batches: Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]) -> Iterator[tuple]:
    """Join batches of entries until they have `SHARD_BYTES` or took `SHARD_SECONDS`."""
    waiting, size, started = [], 0, time.monotonic()
    for batch in batches:
        waiting.append(batch)
        size += sum(values.nbytes for values in batch[1:])
        if size >= SHARD_BYTES or time.monotonic() - started >= SHARD_SECONDS:
            yield _together(waiting)
            waiting, size, started = [], 0, time.monotonic()
    if waiting:
        yield _together(waiting)


def _together(batches: list[tuple]) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    indices, means, stds = zip(*batches)
    return np.concatenate(indices), torch.cat(means), torch.cat(stds)


def _entries(loader, indices, vae, dtype, bar) -> Iterator[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:
    """Yield indices (n,), means (n, 2, C, h, w) and deviations of each batch, without images that were replaced."""
    position = 0
    for batch in loader:
        pixels = torch.stack([batch["image"], batch["image"].flip(-1)], 1)  # (n, 2, 3, H, W)
        mean, std = (value.cpu().unflatten(0, pixels.shape[:2]) for value in posterior(vae, pixels.flatten(0, 1)))
        wanted = indices[position : position + len(mean)]
        position += len(mean)
        own = batch["index"].numpy() == wanted
        if own.any():
            yield wanted[own], _rounded(mean[own], dtype), _rounded(std[own], dtype)
        bar.update(len(mean))


def _rounded(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    rounded = values.to(dtype)
    if not rounded.isfinite().all() and values.isfinite().all():
        raise InputError(
            f"a latent of {values.abs().max():.3g} is too large for fp16; keep the latents as bf16 or fp32"
        )
    return rounded
