"""Datasets of the `datasets` package: a local folder or a hub id."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from onelora_vision.errors import InputError, nearest, one_line
from onelora_vision.runtime.hub import expect_hub


def open_tables(
    name: str,
    known: Iterable[str],
    *,
    download: bool,
    data_dir: str | os.PathLike | None = None,
    cache_dir: str | None = None,
) -> Mapping[str, Any]:
    """Open the tables of a dataset by split. Without splits, the table is ``train``.

    Args:
        name: a local folder, or a hub id (with ``download``, which allows network access).
        known: names to suggest in messages.

    Raises:
        InputError: the dataset does not exist or cannot be opened, or `datasets` is not installed.
    """
    unknown = f"dataset {name!r} is unknown{nearest(name, known, 'dataset')}"
    try:
        import datasets
    except ImportError:
        raise InputError(f"{unknown} (a hub id or a local dataset needs `pip install datasets`)") from None
    local = os.path.isdir(name)
    if not local and not download:
        raise InputError(f"{unknown}; if it is a hub id, --download fetches it")
    expect_hub(name)
    try:
        if local and any(os.path.isfile(os.path.join(name, f)) for f in ("dataset_dict.json", "dataset_info.json")):
            tables = datasets.load_from_disk(name)
        else:
            tables = datasets.load_dataset(name, data_dir=data_dir, cache_dir=cache_dir)
    # `datasets` raises its own errors, and those of pyarrow, the hub client and the network.
    except Exception as error:
        raise InputError(f"dataset {name!r} cannot be opened: {one_line(error)}") from error
    return tables if isinstance(tables, dict) else {"train": tables}
