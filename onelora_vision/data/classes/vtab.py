"""VTAB-1k (arXiv 1910.04867) in its usual layout: a folder per task, with lists of its images.

``ROOT/TASK/{train800,val200,test}.txt`` have lines ``path label``, with paths relative to ``ROOT/TASK``.
"""

from pathlib import Path

from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.images import shown
from onelora_vision.errors import InputError, nearest
from onelora_vision.storage.textfiles import file_below, read_lines

#: The tasks by group, in the order of published tables.
GROUPS = {
    "natural": ("cifar", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "sun397"),
    "specialized": ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
    "structured": (
        "clevr_count", "clevr_dist", "dmlab", "kitti", "dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele",
    ),
}  # fmt: skip
TASKS = tuple(task for group in GROUPS.values() for task in group)
_LISTS = {"train": "train800.txt", "validation": "val200.txt", "test": "test.txt"}


def vtab(root: Path, split: str, *, task: str, download: bool, seed: int) -> ClassImages:
    """Open one task. Its classes are numbers.

    Raises:
        InputError: the task or list does not exist, or a line is not ``path label``, or names a file outside the task's
            folder or a class that is not in the training split.
    """
    if task not in TASKS:
        raise InputError(f"vtab/{task}: no such task{nearest(task, TASKS, 'task')}")
    folder = root / task
    if not (folder / _LISTS["train"]).is_file():
        raise InputError(f"{shown(folder)}: has no {_LISTS['train']}, so it is not a task of VTAB-1k")
    labels = [label for name in ("train", "validation") for _, label in _lines(folder / _LISTS[name])]
    names = [str(number) for number in range(max(labels) + 1)]
    pairs = _lines(folder / _LISTS[split])
    if beyond := next((label for _, label in pairs if label >= len(names)), None):
        raise InputError(f"{shown(folder / _LISTS[split])}: class {beyond}, but training has 0 to {len(names) - 1}")
    files = [str(file_below(folder, path)) for path, _ in pairs]
    return ClassImages(files, [label for _, label in pairs], names, name=f"vtab/{task}", split=split)


def tasks_in(root: Path) -> list[str]:
    """The tasks with lists in ``root``, in the order of `TASKS`."""
    return [task for task in TASKS if (root / task / _LISTS["train"]).is_file()]


def _lines(path: Path) -> list[tuple[str, int]]:
    pairs = []
    for line in read_lines(path, "list of images"):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdigit() or int(label) > 10_000:
            raise InputError(f"{shown(path)}: the line {line[:60]!r} is not 'path label'")
        pairs.append((name, int(label)))
    if not pairs:
        raise InputError(f"{shown(path)}: lists no images")
    return pairs
