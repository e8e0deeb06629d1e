"""Images with one class each: the common data sets of transfer learning opened by name, and the dataset over them."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from onelora_vision.data.images import decode_image, list_folders, list_images, read_image, shown, to_rgb, trimmed
from onelora_vision.data.stream import BadItems, SampleRef, SeededDataset
from onelora_vision.errors import InputError, listed, nearest
from onelora_vision.runtime.hub import expect_hub
from onelora_vision.seeding import mix
from onelora_vision.storage.textfiles import read_lines, read_text

#: Name of the data set that needs no folder.
EMBEDDED = "embedded"
SPLITS = ("train", "validation", "test")


class MissingSplit(InputError):
    """The data set has no split of this name."""


@dataclass(frozen=True)
class ClassImages:
    """Images and their classes, opened but not read.

    Attributes:
        images: a sequence whose entries are paths, or Pillow images (read when indexed).
        labels: the class of each image, an index into ``class_names``.
        class_names: one name per class.
        name: of the data set, for messages and cards.
        split: "train", "validation" or "test".
    """

    images: Sequence[str | os.PathLike | Image.Image]
    labels: Sequence[int]
    class_names: list[str]
    name: str
    split: str

    def __post_init__(self):
        if len(self.images) != len(self.labels):
            raise InputError(f"{self.name}/{self.split}: {len(self.images)} images but {len(self.labels)} labels")
        if len(self.labels) and not 0 <= min(self.labels) <= max(self.labels) < len(self.class_names):
            raise InputError(
                f"{self.name}/{self.split}: labels from {min(self.labels)} to {max(self.labels)} for "
                f"{len(self.class_names)} classes; images without a label cannot be used"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """Where image ``index`` comes from: its file, or the data set's name, split and index."""
        image = self.images[index] if isinstance(self.images, list) else None
        return os.fspath(image) if isinstance(image, (str, os.PathLike)) else f"{self.name}/{self.split}[{index}]"

    def identity(self) -> str:
        """A hash of which images these are: their classes and the names of file and folder, wherever the whole lies."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for index, label in enumerate(self.labels):
            name = "/".join(self.path(index).split(os.sep)[-2:])
            digest.update(f"{name} {label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def read(self, index: int) -> Image.Image:
        """Image ``index`` as upright RGB, `trimmed`. Raises `InputError` that names the image if it cannot be read."""
        image = self.images[index]
        picture = read_image(image) if isinstance(image, (str, os.PathLike)) else to_rgb(image)
        return trimmed(picture, shown(self.path(index)))

    def subset(self, indices: Sequence[int], split: str | None = None) -> "ClassImages":
        """The images at ``indices``, in that order, with all class names; ``split`` renames the split."""
        images = [self.images[i] for i in indices] if isinstance(self.images, list) else _Picked(self.images, indices)
        return replace(self, images=images, labels=[self.labels[i] for i in indices], split=split or self.split)

    def few_shot(self, per_class: int, seed: int = 0) -> "ClassImages":
        """``per_class`` images of each class drawn by ``seed``. A class with fewer is an `InputError`."""
        chosen = []
        for label, members in enumerate(self._by_class(seed)):
            if len(members) < per_class:
                name = self.class_names[label]
                raise InputError(
                    f"{self.name}/{self.split}: class {name!r} has {len(members)} images, not {per_class}"
                )
            chosen.extend(members[:per_class])
        return self.subset(sorted(chosen))

    def split_off(self, fraction: float, *, split: str, seed: int = 0) -> tuple["ClassImages", "ClassImages"]:
        """Divide into (the rest, a part named ``split``) with ``fraction`` of each class, at least one image, in the part.

        A class of one image stays whole in the rest.
        """
        part = []
        for members in self._by_class(seed):
            count = min(max(round(fraction * len(members)), 1), len(members) - 1)
            part.extend(members[: max(count, 0)])
        taken = set(part)
        rest = [index for index in range(len(self)) if index not in taken]
        return self.subset(rest), self.subset(sorted(part), split)

    def _by_class(self, seed: int) -> list[list[int]]:
        """The indices of each class, shuffled by (seed, class)."""
        labels = np.asarray(self.labels)
        members = [np.flatnonzero(labels == label) for label in range(len(self.class_names))]
        return [np.random.default_rng(mix(seed, k)).permutation(group).tolist() for k, group in enumerate(members)]


class ClassImageDataset(SeededDataset):
    """Transformed images with their labels, indexed by `SampleRef`.

    An item is ``{"image": transform(picture), "label": int, "seed": int, "index": int, "path": str}``. The transform
    runs under generators seeded by the reference, so that torchvision's and timm's random transforms, which draw from
    the global ones, depend on nothing else.

    Args:
        source: the images.
        transform: from a Pillow image to a float tensor (3, H, W).
        on_bad_image: "error" raises the `InputError` of an unreadable image; "skip" logs its name once and takes the
            next readable image instead, with that image's label and index. An evaluation that must not count the
            replacement counts each index once.
    """

    def __init__(
        self, source: ClassImages, transform: Callable[[Image.Image], torch.Tensor], on_bad_image: str = "error"
    ):
        self.source = source
        self.transform = transform
        self.on_bad_image = on_bad_image
        self._bad = BadItems(len(source), on_bad_image, f"{source.name}/{source.split}")

    @property
    def class_names(self) -> list[str]:
        return self.source.class_names

    @property
    def num_bad_images(self) -> int:
        """How many unreadable images have been met so far, by this process and its loader's workers."""
        return self._bad.count

    def __len__(self) -> int:
        return len(self.source)

    def _item(self, ref: SampleRef, seed: Callable[[int], None]) -> dict[str, Any]:
        index, picture = self._bad.first_readable(ref.index, self.source.read)
        seed(ref.seed)
        image = self.transform(picture)
        label = int(self.source.labels[index])
        return {"image": image, "label": label, "seed": ref.seed, "index": index, "path": self.source.path(index)}


def open_class_images(
    dataset_name: str,
    data_dir: str | os.PathLike | None = None,
    split: str = "train",
    *,
    download: bool = False,
    seed: int = 0,
    image_column: str = "image",
    label_column: str = "label",
    cache_dir: str | None = None,
) -> ClassImages:
    """Open a data set by name.

    Args:
        dataset_name: embedded (scikit-learn's digits, no folder needed), cifar10, cifar100, food101, flowers102,
            oxford_iiit_pet, imagefolder, or the id or local folder of a data set for the `datasets` package.
        data_dir: the data set's folder or the folder above it. For imagefolder: class folders, or train/ and
            test/ (or val/) with class folders in them.
        split: "train", "validation" (where the data set has one beside its test split) or "test".
        download: fetch the data set into ``data_dir`` when it is not there.
        seed: of the stratified split (80 % train, 20 % test) of an imagefolder that has no split of its own.
        image_column, label_column: columns of a `datasets` data set.
        cache_dir: where `datasets` keeps what it downloads.

    Raises:
        MissingSplit: the data set has no such split.
        InputError: unknown name, nothing at ``data_dir``, a class without images.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}{nearest(split, SPLITS, 'split')}")
    opener = OPENERS.get(dataset_name)
    if opener is None:
        return _open_hub(dataset_name, data_dir, split, download, seed, image_column, label_column, cache_dir)
    if data_dir is None and dataset_name != EMBEDDED:
        raise InputError(f"data set {dataset_name!r} needs --data_dir: the folder that it is in")
    return opener(Path(data_dir or "."), split, download=download, seed=seed)


def open_training_images(
    dataset_name: str,
    data_dir: str | os.PathLike | None = None,
    *,
    validation_fraction: float,
    seed: int = 0,
    **options,
) -> tuple[ClassImages, ClassImages | None]:
    """The training images and those that settings are chosen by: the data set's own validation split, else a part of
    the training split, ``validation_fraction`` of each class, drawn by ``seed``; None if that is 0, or no class has two.

    ``options`` are those of `open_class_images`.
    """
    train = open_class_images(dataset_name, data_dir, "train", seed=seed, **options)
    try:
        return train, open_class_images(dataset_name, data_dir, "validation", seed=seed, **options)
    except MissingSplit:
        if validation_fraction == 0:
            return train, None
        rest, part = train.split_off(validation_fraction, split="validation", seed=seed)
        return rest, part if len(part) else None


def _open_digits(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """The handwriting of `onelora_vision.data.synthetic.digits`, 32 x 32 pixels, in its fixed splits."""
    from onelora_vision.data.synthetic.digits import HandwrittenDigits

    digits = HandwrittenDigits(split)
    pixels = (digits.images().permute(0, 2, 3, 1) * 255).round().byte().numpy()
    return ClassImages(_Pixels(pixels), digits.labels.tolist(), digits.class_names, "digits", split)


def _open_cifar10(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    return _open_cifar("CIFAR10", root, split, download, files, names="batches.meta.txt", label_bytes=1)


def _open_cifar100(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    files = {"train": ["train.bin"], "test": ["test.bin"]}
    return _open_cifar("CIFAR100", root, split, download, files, names="fine_label_names.txt", label_bytes=2)


def _open_cifar(kind: str, root: Path, split: str, download: bool, files, names: str, label_bytes: int) -> ClassImages:
    """CIFAR in its binary version, or through torchvision in its Python version, whose checksums make pickle safe."""
    import torchvision

    _need_split(kind.lower(), split, ("train", "test"))
    for folder in (root, *sorted(root.glob("cifar-10*-b*"))):
        if (folder / names).is_file() and (folder / files[split][0]).is_file():
            return _read_cifar_binary(kind.lower(), folder, split, files[split], names, label_bytes)
    parent = root.parent if root.name.startswith("cifar-") else root
    if download:
        _download(kind, parent)
    try:
        data = getattr(torchvision.datasets, kind)(parent, train=split == "train")
    except RuntimeError:
        raise _missing(kind.lower(), root, "its python or binary version, complete and undamaged") from None
    return ClassImages(_Pixels(data.data), list(data.targets), list(data.classes), kind.lower(), split)


def _read_cifar_binary(name: str, folder: Path, split: str, files: list[str], names: str, label_bytes: int):
    """Records of ``label_bytes`` (the last one is the class) and 3 × 32 × 32 bytes, channels first."""
    records = []
    for file in files:
        data = np.fromfile(folder / file, dtype=np.uint8)
        if data.size == 0 or data.size % (label_bytes + 3072):
            raise InputError(
                f"{shown(folder / file)}: is damaged: its size is no multiple of {label_bytes + 3072} bytes"
            )
        records.append(data.reshape(-1, label_bytes + 3072))
    records = np.concatenate(records)
    pixels = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    class_names = read_text(folder / names).split()
    return ClassImages(_Pixels(pixels), records[:, label_bytes - 1].tolist(), class_names, name, split)


def _open_food101(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """food-101/{images/<class>/<id>.jpg, meta/{train,test}.txt}."""
    _need_split("food101", split, ("train", "test"))
    folder = _dataset_folder("food101", root, "food-101", "meta/train.txt", download, "Food101")
    lines = _lines(folder / "meta" / f"{split}.txt")
    class_names = sorted({line.split("/")[0] for line in _lines(folder / "meta" / "train.txt")})
    paths = [str(folder / "images" / f"{line}.jpg") for line in lines]
    labels = _labels([line.split("/")[0] for line in lines], class_names, f"food101/{split}")
    return _present("food101", split, paths, labels, class_names)


def _open_flowers102(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """flowers-102/{jpg/image_<id>.jpg, imagelabels.mat, setid.mat}; train and validation hold 10 images per class."""
    from scipy.io import loadmat
    from torchvision.datasets import Flowers102

    folder = _dataset_folder("flowers102", root, "flowers-102", "setid.mat", download, "Flowers102")
    ids = loadmat(folder / "setid.mat")[{"train": "trnid", "validation": "valid", "test": "tstid"}[split]].ravel()
    all_labels = loadmat(folder / "imagelabels.mat")["labels"].ravel()
    paths = [str(folder / "jpg" / f"image_{number:05d}.jpg") for number in ids]
    names = list(getattr(Flowers102, "classes", [str(number) for number in range(1, 103)]))
    return _present("flowers102", split, paths, [int(all_labels[number - 1]) - 1 for number in ids], names)


def _open_oxford_iiit_pet(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """oxford-iiit-pet/{images/<Breed>_<id>.jpg, annotations/{trainval,test}.txt}; a line is "name class species breed"."""
    _need_split("oxford_iiit_pet", split, ("train", "test"))
    folder = _dataset_folder(
        "oxford_iiit_pet", root, "oxford-iiit-pet", "annotations/trainval.txt", download, "OxfordIIITPet"
    )
    file = folder / "annotations" / "trainval.txt"
    breeds = {int(row[1]): _breed(row) for row in map(str.split, _lines(file))}
    if sorted(breeds) != list(range(1, len(breeds) + 1)):
        raise InputError(f"{shown(file)}: its classes are not numbered 1 to {len(breeds)}")
    class_names = [breeds[number] for number in sorted(breeds)]
    rows = [line.split() for line in _lines(file if split == "train" else file.with_name("test.txt"))]
    paths = [str(folder / "images" / f"{row[0]}.jpg") for row in rows]
    labels = _labels([_breed(row) for row in rows], class_names, f"oxford_iiit_pet/{split}")
    return _present("oxford_iiit_pet", split, paths, labels, class_names)


def _breed(row: list[str]) -> str:
    return row[0].rsplit("_", 1)[0]


def _labels(classes: Sequence, class_names: Sequence, name: str) -> list[int]:
    """Each class as its position in ``class_names``, which are those of the training split."""
    position = {class_name: index for index, class_name in enumerate(class_names)}
    if unknown := {str(found) for found in classes if found not in position}:
        raise InputError(f"{name}: no such class in the training split: {listed(unknown)}")
    return [position[found] for found in classes]


def _open_imagefolder(root: Path, split: str, *, download: bool, seed: int) -> ClassImages:
    """Class folders, with a split of their own in train/ and test/ or val/, else split by ``seed``."""
    folders = {folder.lower(): folder for folder in list_folders(root)}
    if "train" not in folders:
        return _own_split(_class_folders(root, "train"), split, seed)
    wanted = {
        "train": ("train",),
        "validation": ("val", "valid", "validation") if "test" in folders else (),
        "test": ("test", "val", "valid", "validation"),
    }[split]
    there = next((folders[name] for name in wanted if name in folders), None)
    if there is None:
        raise MissingSplit(f"{shown(root)}: has train/ but no other folder that could be its {split} split")
    train_names = list_folders(root / folders["train"])
    class_names = None if split == "train" else train_names
    return replace(_class_folders(root / there, split, class_names), name=shown(root.name))


def _own_split(images: ClassImages, split: str, seed: int) -> ClassImages:
    """The training or test part (80 % and 20 % of each class) of a data set that comes undivided."""
    _need_split(images.name, split, ("train", "test"))
    train, test = images.split_off(0.2, split="test", seed=seed)
    if split == "test" and not len(test):
        raise InputError(
            f"{images.name}: no class has two images, so none is left for testing; add images or a test split"
        )
    return train if split == "train" else test


def _class_folders(root: Path, split: str, class_names: list[str] | None = None) -> ClassImages:
    """One class per folder. Training needs images of every class; another split, whose ``class_names`` are those of the
    training split, may lack some, but has no others."""
    found = list_folders(root)
    names = found if class_names is None else class_names
    if not found:
        raise InputError(f"{shown(root)}: no class folders in it: one folder of images per class is needed")
    if unknown := sorted(set(found) - set(names)):
        raise InputError(
            f"{shown(root / unknown[0])}: no such class in the training split{nearest(unknown[0], names)}"
        )
    paths, labels = [], []
    for label, name in enumerate(names):
        images = list_images(root / name) if name in found else []
        if not images and class_names is None:
            raise InputError(f"{shown(root / name)}: class folder without images; add images or remove the folder")
        paths.extend(images)
        labels.extend([label] * len(images))
    if not paths:
        raise InputError(f"{shown(root)}: no images in its class folders")
    return ClassImages(paths, labels, [shown(name) for name in names], shown(root.name), split)


def _open_hub(name, data_dir, split, download, seed, image_column, label_column, cache_dir) -> ClassImages:
    """A data set of the `datasets` package: a local folder, or a hub id (``download`` allows the network)."""
    unknown = f"data set {name!r} is unknown{nearest(name, OPENERS, 'data set')}"
    try:
        import datasets
    except ImportError:
        raise InputError(f"{unknown} (a hub id or a local data set needs `pip install datasets`)") from None
    local = os.path.isdir(name)
    if not local and not download:
        raise InputError(f"{unknown}; if it is a hub id, --download fetches it")
    expect_hub(name)
    try:
        if local and any(os.path.isfile(os.path.join(name, f)) for f in ("dataset_dict.json", "dataset_info.json")):
            tables = datasets.load_from_disk(name)
        else:
            tables = datasets.load_dataset(name, data_dir=data_dir, cache_dir=cache_dir)
    # `datasets` raises errors of its own, of pyarrow, of the hub client and of the network.
    except Exception as error:
        raise InputError(f"data set {name!r} cannot be opened: {' '.join(str(error).split())}") from error
    if not isinstance(tables, dict):
        tables = {"train": tables}
    return _hub_split(name, tables, split, seed, image_column, label_column)


def _hub_split(name: str, tables: dict, split: str, seed: int, image_column: str, label_column: str) -> ClassImages:
    import datasets

    own = ("validation", "valid", "val")
    wanted = {"train": ("train",), "validation": own if "test" in tables else (), "test": ("test", *own)}[split]
    there = next((key for key in wanted if key in tables), None)
    if there is None and (split != "test" or list(tables) != ["train"]):
        raise MissingSplit(f"data set {name!r} has no split {split!r}; it has {', '.join(tables)}")
    table = tables[there or "train"]
    for column, flag in ((image_column, "image_column"), (label_column, "label_column")):
        if column not in table.column_names:
            tail = nearest(column, table.column_names, "column")
            raise InputError(f"data set {name!r} has no column {column!r} (--{flag}){tail}")
    labels, class_names = list(table[label_column]), getattr(table.features[label_column], "names", None)
    if class_names is None:
        values = sorted(set(tables.get("train", table)[label_column]))
        labels = _labels(labels, values, f"{name}/{split}")
        class_names = [str(value) for value in values]
    table = table.cast_column(image_column, datasets.Image(decode=False))
    images = _HubImages(table, image_column, f"{name}/{split}")
    opened = ClassImages(images, labels, class_names, name, split)
    return _own_split(opened, split, seed) if list(tables) == ["train"] else opened


#: The data sets that are opened here; `datasets` opens others.
OPENERS = {
    EMBEDDED: _open_digits,
    "cifar10": _open_cifar10,
    "cifar100": _open_cifar100,
    "food101": _open_food101,
    "flowers102": _open_flowers102,
    "oxford_iiit_pet": _open_oxford_iiit_pet,
    "imagefolder": _open_imagefolder,
}


class _Picked(Sequence):
    """Chosen entries of a sequence, read when indexed."""

    def __init__(self, images: Sequence, indices: Sequence[int]):
        self.images, self.indices = images, list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int):
        return self.images[self.indices[index]]


class _Pixels(Sequence):
    """Pictures from an array (N, H, W, 3) of bytes."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.pixels[index]))


class _HubImages(Sequence):
    """Pictures of a `datasets` table, decoded here so that a damaged one is told like a damaged file."""

    def __init__(self, table, column: str, name: str):
        self.table, self.column, self.name = table, column, name

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Image.Image:
        import io

        entry = self.table[int(index)][self.column]
        if entry["bytes"] is None:
            return read_image(entry["path"])
        return decode_image(io.BytesIO(entry["bytes"]), f"{self.name}[{index}] {entry['path'] or ''}".rstrip())


def _need_split(name: str, split: str, splits: tuple[str, ...]) -> None:
    if split not in splits:
        raise MissingSplit(f"data set {name} has no {split} split of its own; it has {' and '.join(splits)}")


def _dataset_folder(name: str, root: Path, base: str, landmark: str, download: bool, torchvision_name: str) -> Path:
    """The folder that holds ``landmark``: ``root`` or ``root/base``; fetched by torchvision when asked for."""
    for folder in (root, root / base):
        if (folder / landmark).is_file():
            return folder
    if not download:
        raise _missing(name, root, f"{base}/{landmark}")
    _download(torchvision_name, root)
    return root / base


def _download(torchvision_name: str, root: Path) -> None:
    """Fetch and unpack a data set by torchvision, which checks it and leaves one that is there alone."""
    import torchvision

    try:
        getattr(torchvision.datasets, torchvision_name)(root, download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{torchvision_name} cannot be fetched into {shown(root)}: {error}") from error


def _missing(name: str, root: Path, looked_for: str) -> InputError:
    return InputError(f"data set {name}: not found in {shown(root)} (looked for {looked_for}); --download fetches it")


def _lines(file: Path) -> list[str]:
    return [line for line in read_lines(file) if line]


def _present(name: str, split: str, paths: list[str], labels: list[int], class_names: list[str]) -> ClassImages:
    """A data set given by lists of files; one look at the first file finds a folder of lists without images."""
    if not paths:
        raise InputError(f"data set {name}: its list of {split} images is empty")
    if not os.path.isfile(paths[0]):
        raise InputError(f"data set {name}: {shown(paths[0])} is listed but not there; is the data set complete?")
    return ClassImages(paths, labels, class_names, name, split)
