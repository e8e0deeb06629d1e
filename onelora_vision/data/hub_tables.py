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
    """The tables of a dataset by split; one without splits is ``train``.

    Args:
        name: a local folder, or a hub id (``download`` allows the network).
        known: names that may have been meant, for messages.

    Raises:
        InputError: there is no such dataset, `datasets` is not installed, or it cannot be opened.
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
    # `datasets` raises its own errors and those of pyarrow, of the hub client and of the network.
    except Exception as error:
        raise InputError(f"dataset {name!r} cannot be opened: {one_line(error)}") from error
    return tables if isinstance(tables, dict) else {"train": tables}
