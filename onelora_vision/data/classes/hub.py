"""Datasets of the `datasets` package: a local folder or a hub id."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from onelora_vision.data.classes.formats import FORMATS
from onelora_vision.data.classes.images import ClassImages, class_numbers, stratified_split
from onelora_vision.data.hub_tables import open_tables
from onelora_vision.data.images import decode_image, read_image, shown
from onelora_vision.errors import InputError, MissingSplit, nearest


def hub(
    name: str,
    data_dir: str | os.PathLike | None,
    split: str,
    *,
    download: bool,
    seed: int,
    image_column: str,
    label_column: str,
    cache_dir: str | None,
) -> ClassImages:
    """Open a dataset of the `datasets` package: a local folder, or a hub id (``download`` allows network access)."""
    tables = open_tables(name, FORMATS, download=download, data_dir=data_dir, cache_dir=cache_dir)
    return _hub_split(name, tables, split, seed, image_column, label_column)


def _hub_split(name: str, tables: dict, split: str, seed: int, image_column: str, label_column: str) -> ClassImages:
    import datasets

    own = ("validation", "valid", "val")
    wanted = {"train": ("train",), "validation": own if "test" in tables else (), "test": ("test", *own)}[split]
    there = next((key for key in wanted if key in tables), None)
    if there is None and (split != "test" or list(tables) != ["train"]):
        raise MissingSplit(f"dataset {name!r} has no split {split!r}; it has {', '.join(tables)}")
    table = tables[there or "train"]
    for column, flag in ((image_column, "image_column"), (label_column, "label_column")):
        if column not in table.column_names:
            tail = nearest(column, table.column_names, "column")
            raise InputError(f"dataset {name!r} has no column {column!r} (--{flag}){tail}")
    labels, class_names = list(table[label_column]), getattr(table.features[label_column], "names", None)
    if class_names is None:
        values = sorted(set(tables.get("train", table)[label_column]))
        labels = class_numbers(labels, values, f"{name}/{split}")
        class_names = [str(value) for value in values]
    table = table.cast_column(image_column, datasets.Image(decode=False))
    images = _HubImages(table, image_column, f"{name}/{split}")
    opened = ClassImages(images, labels, class_names, name, split)
    return stratified_split(opened, split, seed) if list(tables) == ["train"] else opened


class _HubImages(Sequence):
    """Pictures of a `datasets` table, decoded here to report damaged ones in the same way as damaged files."""

    def __init__(self, table, column: str, name: str):
        self.table, self.column, self.name = table, column, name

    def __len__(self) -> int:
        return len(self.table)

    def encoded(self, index: int) -> bytes:
        """The bytes of the image file. Raises `InputError` if they are not in the table and the file cannot be read."""
        entry = self.table[int(index)][self.column]
        if entry["bytes"] is not None:
            return entry["bytes"]
        try:
            return Path(entry["path"]).read_bytes()
        except OSError as error:
            raise InputError(f"{shown(entry['path'])}: the image cannot be read ({error.strerror})") from None

    def __getitem__(self, index: int) -> Image.Image:
        entry = self.table[int(index)][self.column]
        if entry["bytes"] is None:
            return read_image(entry["path"])
        return decode_image(io.BytesIO(entry["bytes"]), f"{self.name}[{index}] {entry['path'] or ''}".rstrip())
