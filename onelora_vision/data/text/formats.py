"""Datasets of questions with answers, by name. Importing this module imports nothing slow, see `data.classes.formats`."""

from typing import TYPE_CHECKING

from onelora_vision.errors import InputError

if TYPE_CHECKING:
    from onelora_vision.data.text.rows import Row, RowReader

#: Small stories that have to be counted; made on the spot.
EMBEDDED = "arithmetic"
#: A JSONL file, or a JSON file that is a list of objects.
JSON = "json"
EMBEDDED_ROWS = 3000

_IGNORED = {
    EMBEDDED: frozenset(
        {"data_file", "eval_data_file", "download", "prompt_column", "response_column", "on_bad_row", "cache_dir"}
    ),
    JSON: frozenset({"download"}),
}


def ignored_by(dataset_name: str) -> frozenset[str]:
    """The flags that have no effect with a dataset; any name that is not one of ours is one of the `datasets` package."""
    return _IGNORED.get(dataset_name, frozenset({"data_file"}))


def open_rows(
    dataset_name: str,
    data_file: str | None,
    reader: "RowReader",
    *,
    download: bool = False,
    cache_dir: str | None = None,
) -> "list[Row]":
    """All rows of a dataset.

    Args:
        dataset_name: `EMBEDDED`, `JSON`, or a hub id or local folder for the `datasets` package (its split "train").
        data_file: the file, for `JSON`.
        reader: which columns hold question and answer, and what is done about bad rows.
        download: allows the network, for a hub id.

    Raises:
        InputError: unknown name, a file that cannot be read, a bad row.
    """
    from onelora_vision.data.text.rows import Row, read_rows

    if dataset_name == EMBEDDED:
        from onelora_vision.data.synthetic.arithmetic import counted_stories

        return [Row(*problem, f"story {n}") for n, problem in enumerate(counted_stories(EMBEDDED_ROWS))]
    if dataset_name == JSON:
        if data_file is None:
            raise InputError("--dataset_name json needs --data_file: the JSON or JSONL file")
        return read_rows(data_file, reader)
    from onelora_vision.data.text.hub import hub_rows

    return hub_rows(dataset_name, reader, download=download, cache_dir=cache_dir)
