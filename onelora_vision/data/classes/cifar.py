"""CIFAR-10 and CIFAR-100."""

from pathlib import Path

import numpy as np

from onelora_vision.data.classes.images import ClassImages, Pixels, require_split
from onelora_vision.data.classes.torchvision import download_by_torchvision, missing
from onelora_vision.data.images import shown
from onelora_vision.errors import InputError
from onelora_vision.storage.textfiles import read_text


def cifar10(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """cifar-10-batches-bin/{data_batch_1..5.bin, test_batch.bin, batches.meta.txt}, or the Python version."""
    files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    return _cifar("CIFAR10", root, split, download, files, names="batches.meta.txt", label_bytes=1)


def cifar100(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """cifar-100-binary/{train.bin, test.bin, fine_label_names.txt}, or the Python version; its 100 fine classes."""
    files = {"train": ["train.bin"], "test": ["test.bin"]}
    return _cifar("CIFAR100", root, split, download, files, names="fine_label_names.txt", label_bytes=2)


def _cifar(kind: str, root: Path, split: str, download: bool, files, names: str, label_bytes: int) -> ClassImages:
    """Open CIFAR's binary version, or its Python version with torchvision, whose checksums make unpickling safe."""
    import torchvision

    require_split(kind.lower(), split, ("train", "test"))
    for folder in (root, *sorted(root.glob("cifar-10*-b*"))):
        if (folder / names).is_file() and (folder / files[split][0]).is_file():
            return _read_binary(kind.lower(), folder, split, files[split], names, label_bytes)
    parent = root.parent if root.name.startswith("cifar-") else root
    if download:
        download_by_torchvision(kind, parent)
    try:
        data = getattr(torchvision.datasets, kind)(parent, train=split == "train")
    except RuntimeError:
        raise missing(kind.lower(), root, "its python or binary version, complete and undamaged") from None
    return ClassImages(Pixels(data.data), list(data.targets), list(data.classes), kind.lower(), split)


def _read_binary(name: str, folder: Path, split: str, files: list[str], names: str, label_bytes: int):
    """Read records of ``label_bytes`` (the last one is the class) and 3 × 32 × 32 pixel bytes, channels first."""
    records = []
    for file in files:
        data = np.fromfile(folder / file, dtype=np.uint8)
        if data.size == 0 or data.size % (label_bytes + 3072):
            raise InputError(
                f"{shown(folder / file)}: is damaged: its size is not a multiple of {label_bytes + 3072} bytes"
            )
        records.append(data.reshape(-1, label_bytes + 3072))
    records = np.concatenate(records)
    pixels = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    class_names = read_text(folder / names).split()
    return ClassImages(Pixels(pixels), records[:, label_bytes - 1].tolist(), class_names, name, split)
