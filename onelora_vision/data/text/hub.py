"""Questions with answers from the `datasets` package: a local folder or a hub id, such as MetaMathQA."""

from onelora_vision.data.hub_tables import open_tables
from onelora_vision.data.text.formats import EMBEDDED, JSON
from onelora_vision.data.text.rows import Row, RowReader
from onelora_vision.errors import MissingSplit


def hub_rows(name: str, reader: RowReader, *, download: bool, cache_dir: str | None) -> list[Row]:
    """Read the rows of the dataset's ``train`` split.

    Raises:
        MissingSplit: the dataset has no such split, or the split has no rows.
        InputError: see `open_tables`, or a row is bad and the reader does not skip it.
    """
    tables = open_tables(name, (EMBEDDED, JSON), download=download, cache_dir=cache_dir)
    if "train" not in tables:
        raise MissingSplit(f"dataset {name!r} has no split 'train'; it has {', '.join(tables)}")
    rows = reader.rows((f"{name}/train[{number}]", record) for number, record in enumerate(tables["train"]))
    if not rows:
        raise MissingSplit(f"dataset {name!r}: its split 'train' holds no rows")
    return rows
