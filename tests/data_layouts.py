"""Datasets written to disk in their published layouts: for tests and for the rehearsal. VTAB and FGVC: `tiny_benchmarks`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def save_image(path: Path, pixels: np.ndarray) -> None:
    """An image file of (H, W, 3) or (H, W) uint8, or 16-bit values; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_png16(path: Path, values: np.ndarray) -> None:
    save_image(path, values.astype(np.uint16))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture of random pixels, (height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_food101(
    root: Path, class_names: Sequence[str], train: int, test: int, size: tuple[int, int] = (8, 8)
) -> None:
    """``root/food-101`` with ``train`` and ``test`` images of (height, width) per class, numbered from 1."""
    folder, lists = root / "food-101", {"train": [], "test": []}
    for number, name in enumerate(class_names):
        for image in range(1, train + test + 1):
            save_image(folder / "images" / name / f"{image}.jpg", noise(*size, seed=1000 * number + image))
            lists["train" if image <= train else "test"].append(f"{name}/{image}")
    (folder / "meta").mkdir()
    (folder / "meta" / "classes.txt").write_text("".join(f"{name}\n" for name in sorted(class_names)))
    (folder / "meta" / "train.txt").write_text("\n".join(lists["train"]) + "\n")
    (folder / "meta" / "test.txt").write_text("\n".join(reversed(lists["test"])))


#: By dataset: the folder, the files of the training split, the file of class names, and bytes of label per image.
CIFAR = {
    "cifar10": ("cifar-10-batches-bin", [f"data_batch_{i}.bin" for i in range(1, 6)], "batches.meta.txt", 1),
    "cifar100": ("cifar-100-binary", ["train.bin"], "fine_label_names.txt", 2),
}


def write_cifar(
    root: Path, name: str, class_names: Sequence[str], labels: Sequence[int], pixels: np.ndarray
) -> list[Path]:
    """The binary version of CIFAR; every file holds the same images (N, 32, 32, 3). Returns the training files."""
    folder_name, train, names, label_bytes = CIFAR[name]
    folder = root / folder_name
    folder.mkdir(parents=True)
    (folder / names).write_text("\n".join(class_names) + "\n\n")
    records = np.zeros((len(labels), label_bytes + 3072), dtype=np.uint8)
    records[:, label_bytes - 1] = labels
    records[:, label_bytes:] = pixels.transpose(0, 3, 1, 2).reshape(len(labels), -1)
    for file in [*train, "test_batch.bin" if name == "cifar10" else "test.bin"]:
        (folder / file).write_bytes(records.tobytes())
    return [folder / file for file in train]


def write_nyu_mat(root: Path, images: np.ndarray, depths: np.ndarray, train: list[int], test: list[int]) -> Path:
    """``nyu_depth_v2_labeled.mat`` of images (N, 480, 640, 3) and metres (N, 480, 640), and its ``splits.mat``."""
    import h5py
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    path = root / "nyu_depth_v2_labeled.mat"
    with h5py.File(path, "w") as file:  # Matlab's order: every axis reversed
        file["images"], file["depths"] = images.transpose(0, 3, 2, 1), depths.transpose(0, 2, 1)
    numbers = {f"{name}Ndxs": np.array(indices)[:, None] + 1 for name, indices in (("train", train), ("test", test))}
    savemat(root / "splits.mat", numbers)
    return path


def write_nyu_frame(folder: Path, number: int, pixels: np.ndarray, millimetres: np.ndarray, ending: str) -> None:
    """A frame of the Eigen split's folders, ``train/SCENE`` or ``test/SCENE``; the image ends in jpg or png."""
    save_image(folder / f"rgb_{number:05d}.{ending}", pixels)
    save_png16(folder / f"sync_depth_{number:05d}.png", millimetres)


def write_kitti(root: Path, split: str, pixels: Sequence[np.ndarray], depths: Sequence[np.ndarray]) -> None:
    """KITTI's raw images and annotated depth (256ths of a metre), with the Eigen list, which also names one without truth."""
    place = {"train": "train", "test": "val"}[split]
    lines = ""
    for number, (image, values) in enumerate(zip(pixels, depths, strict=True), 69):
        image_name = f"2011_09_26/drive_0002_sync/image_02/data/{number:010d}.png"
        depth_name = f"drive_0002_sync/proj_depth/groundtruth/image_02/{number:010d}.png"
        save_image(root / "raw" / image_name, image)
        save_png16(root / "data_depth_annotated" / place / depth_name, values)
        lines += f"{image_name} {depth_name} 721.5377\n"
    (root / f"eigen_{split}_files_with_gt.txt").write_text(f"{lines}{image_name} None 721.5377\n")


def write_diode(folder: Path, name: str, pixels: np.ndarray, depth: np.ndarray, mask: np.ndarray) -> None:
    """A frame of DIODE: metres (H, W, 1) and a mask (H, W) of fp32, where 1 is valid."""
    save_image(folder / f"{name}.png", pixels)
    np.save(folder / f"{name}_depth.npy", depth)
    np.save(folder / f"{name}_depth_mask.npy", mask)
