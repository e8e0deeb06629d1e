"""Images as the autoencoder's latents, encoded once and kept on disk.

An entry holds the posterior's mean and standard deviation of an image and of its mirror image, so that a run with the
cache draws the very latents that a run without it would. It is found by the hash of the image's content, within a
folder named by the autoencoder's weights and the transform: an edited image is encoded anew, and a latent of another
autoencoder or crop is never met.

A folder holds shards of up to `SHARD` entries, each written in one piece, so a build that was stopped goes on at the
next shard, and processes or runs that build side by side do not disturb one another.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from onelora_vision.errors import InputError, WriteError
from onelora_vision.runtime.progress import progress_bar
from onelora_vision.storage.cache import NoHomeFolder, combined_hash, default_cache, dispensable
from onelora_vision.storage.files import atomic_file

SHARD = 512  # entries; of 32 x 32 x 4 latents in fp32 a shard is 32 MiB


@torch.no_grad()
def posterior(vae: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (N, C, h, w), fp32, of the latents of images (N, 3, H, W) in [0, 1]."""
    parameter = next(vae.parameters())
    distribution = vae.encode((images * 2 - 1).to(parameter.device, parameter.dtype)).latent_dist
    return distribution.mean.float(), distribution.std.float()


class EncodedImages(torch.utils.data.Dataset):
    """Images that are encoded once and kept in memory: items have ``mean`` and ``std`` (C, h, w), ``label`` and ``seed``.

    Args:
        dataset: images without augmentation, with ``images()`` (N, 3, H, W) in [0, 1], ``labels`` and ``class_names``.
        vae: the autoencoder. batch_size: images per encoding.
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


class LatentStore:
    """The shards in one folder, as a map from an image's hash to its latents. Damaged shards are left out, with a warning."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._place: dict[str, tuple[Path, int]] = {}
        self._open: dict[Path, Any] = {}
        for path in sorted(self.folder.glob("latents-*.safetensors")):
            with dispensable((InputError,)):
                self._place.update((key, (path, row)) for row, key in enumerate(self._keys(path)))

    def __contains__(self, key: str) -> bool:
        return key in self._place

    def __len__(self) -> int:
        return len(self._place)

    def read(self, key: str, mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (C, h, w) of an image or of its mirror image."""
        path, row = self._place[key]
        shard = self._shard(path)
        return tuple(shard.get_slice(name)[row, int(mirrored)] for name in ("mean", "std"))

    def write(self, keys: Sequence[str], mean: torch.Tensor, std: torch.Tensor) -> None:
        """Add a shard of entries (n, 2, C, h, w): as they are, and mirrored. Its name is a hash of its keys."""
        path = self.folder / f"latents-{combined_hash(keys)[:16]}.safetensors"
        with atomic_file(path) as temporary:
            tensors = {"mean": mean.contiguous(), "std": std.contiguous()}
            save_file(tensors, temporary, metadata={"keys": json.dumps(list(keys))})
        self._place.update((key, (path, row)) for row, key in enumerate(keys))

    def _keys(self, path: Path) -> list[str]:
        try:
            return json.loads(self._shard(path).metadata()["keys"])
        except (
            TypeError,
            KeyError,
            ValueError,
        ):  # a header that this class did not write; JSON's error is a ValueError
            raise InputError(f"{path} is damaged (no list of keys); its images are encoded again") from None

    def _shard(self, path: Path):
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise InputError(f"{path} is damaged ({error}); its images are encoded again") from None
        return self._open[path]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": {}}  # a worker process opens the files itself


class LatentDataset(SeededDataset):
    """A `ClassImageDataset` whose images are latents: items have ``mean`` and ``std`` (C, h, w) in place of ``image``.

    Whether an item is mirrored is drawn as the dataset's own transform draws it. An image that could not be read, and
    has no entry, is replaced as the dataset replaces it.
    """

    def __init__(self, dataset: ClassImageDataset, keys: Sequence[str], store: LatentStore):
        self.source, self.transform = dataset.source, dataset.transform
        self.keys, self.store = list(keys), store
        if not any(key in store for key in self.keys):
            raise InputError(f"{self.source.name}/{self.source.split}: none of its {len(self)} images can be read")

    @property
    def class_names(self) -> list[str]:
        return self.source.class_names

    def identity(self) -> str:
        """That of the images: whether their latents are kept changes nothing."""
        return self.source.identity()

    def __len__(self) -> int:
        return len(self.keys)

    def _item(self, ref: SampleRef, seed: Callable[[int], None]) -> dict[str, Any]:
        index = ref.index
        while self.keys[index] not in self.store:
            index = (index + 1) % len(self)
        seed(ref.seed)
        mirrored = self.transform.draw_flip()
        mean, std = self.store.read(self.keys[index], mirrored)
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
) -> LatentDataset | ClassImageDataset:
    """Encode what of ``dataset`` is not yet in the cache, each process its share, and open the latents.

    Where the cache cannot be written, ``dataset`` itself is returned, with a warning.

    Args:
        dataset: with a centred `SquareCrop`; its flip stays free.
        vae_hash: of the autoencoder's weights.
        cache_dir: the folder above all caches (default: in the user's cache); this one's name is a hash of autoencoder
            and transform.
        batch_size: images per encoding, which counts each with its mirror image as one.

    Raises:
        InputError: the transform is random beyond mirroring, or an image cannot be read (unless the dataset skips such
            images).
    """
    if not (isinstance(dataset, ClassImageDataset) and isinstance(dataset.transform, SquareCrop)):
        raise InputError("--cache_latents: these training images are drawn afresh at each pass; train without it")
    if not dataset.transform.center_crop:
        raise InputError("--cache_latents needs --center_crop: a random crop has no latent that could be kept")
    keys, done = content_hashes(dataset.source, not accelerator.is_local_main_process), False
    plain = replace(dataset.transform, random_flip=False)
    images = ClassImageDataset(dataset.source, plain, dataset.on_bad_image)
    with dispensable((NoHomeFolder, WriteError)):  # other failures to read or write are the images', or a lost process
        folder = Path(cache_dir) if cache_dir else default_cache() / "latents"
        store = LatentStore(folder / combined_hash([vae_hash, str(plain)])[:16])
        _encode(images, _own_part(keys, store, accelerator), keys, vae, store, batch_size, num_workers, accelerator)
        done = True
    if not all(gather_object([done])):
        return dataset
    return LatentDataset(dataset, keys, LatentStore(store.folder))


def _own_part(keys: Sequence[str], store: LatentStore, accelerator: Accelerator) -> list[int]:
    """Which of the images that are not in ``store`` this process encodes: one index of each."""
    missing = {key: index for index, key in enumerate(keys) if key not in store}
    # An image's process is told by its hash, so that none is left out when another run adds entries at the same time.
    return [
        i for key, i in missing.items() if int(key[:15], 16) % accelerator.num_processes == accelerator.process_index
    ]


def _encode(images, indices, keys, vae, store, batch_size, num_workers, accelerator) -> None:
    loader = DataLoader(images, batch_size, sampler=indices, num_workers=num_workers, collate_fn=collate)
    hidden = not accelerator.is_local_main_process or not indices
    with progress_bar(len(indices), desc="encoding images", unit="image", hidden=hidden) as bar:
        entries = _entries(loader, indices, keys, vae, bar)
        while shard := [entry for _, entry in zip(range(SHARD), entries)]:
            names, means, stds = zip(*shard)
            store.write(names, torch.stack(means), torch.stack(stds))


def _entries(loader, indices, keys, vae, bar) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Key, means (2, C, h, w) and deviations of each image; those that another one stood in for are left out."""
    position = 0
    for batch in loader:
        pixels = torch.stack([batch["image"], batch["image"].flip(-1)], 1)  # (n, 2, 3, H, W)
        mean, std = (value.cpu().unflatten(0, pixels.shape[:2]) for value in posterior(vae, pixels.flatten(0, 1)))
        for row, found in enumerate(batch["index"].tolist()):
            wanted = indices[position]
            position += 1
            if found == wanted:
                yield keys[wanted], mean[row], std[row]
        bar.update(len(mean))
