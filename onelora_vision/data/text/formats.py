"""Opening datasets of questions with answers by name. Importing this module is fast, see `data.classes.formats`."""

from typing import TYPE_CHECKING

from onelora_vision.errors import InputError

if TYPE_CHECKING:
    from onelora_vision.data.text.rows import Row, RowReader

#: Arithmetic problems told as short stories, generated on the fly.
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
    """The flags that have no effect with a dataset. A name that is not ours belongs to the `datasets` package."""
    return _IGNORED.get(dataset_name, frozenset({"data_file"}))


def open_rows(
    dataset_name: str,
    data_file: str | None,
    reader: "RowReader",
    *,
    download: bool = False,
    cache_dir: str | None = None,
) -> "list[Row]":
    """Open all rows of a dataset.

    Args:
        dataset_name: `EMBEDDED`, `JSON`, or a hub id or local folder for the `datasets` package (its split "train").
        data_file: the file for `JSON`.
        reader: determines the columns of question and answer, and how bad rows are handled.
        download: allow network access, for a hub id.

    Raises:
        InputError: the name is unknown, a file cannot be read, or a row is bad.
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
