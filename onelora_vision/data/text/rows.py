"""Questions with answers, from JSON and JSONL files such as MetaMathQA's."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from onelora_vision.errors import InputError, MissingSplit, nearest, one_line
from onelora_vision.seeding import mix
from onelora_vision.storage.textfiles import read_text, require_unicode

_log = logging.getLogger(__name__)
#: Default columns of question and answer, in order of preference: MetaMathQA's, then other common names.
COLUMNS = (("query", "response"), ("prompt", "response"), ("prompt", "completion"))
_SPLIT_STREAM = 8020


class Row(NamedTuple):
    """A question, its full answer, and their location for messages."""

    query: str
    response: str
    where: str = ""


class RowReader:
    """Converts records to `Row`s, and handles bad records.

    Args:
        columns: the columns of question and answer; None uses the first pair in `COLUMNS` that a record has.
        on_bad_row: "error" raises at the first bad record; "skip" logs a bad record and leaves it out.

    Attributes:
        skipped: number of records that were left out.
    """

    def __init__(self, columns: tuple[str, str] | None = None, on_bad_row: str = "error"):
        self.columns, self.on_bad_row, self.skipped = columns, on_bad_row, 0

    def rows(self, records: Iterator[tuple[str, Any]]) -> list[Row]:
        """Convert (location, record) pairs to rows. A record that could not be read is given as an `InputError`."""
        found = []
        for where, record in records:
            try:
                found.append(self._row(where, record))
            except InputError as error:
                if self.on_bad_row == "error":
                    raise InputError(f"{error}; --on_bad_row skip leaves such rows out") from None
                self.skipped += 1
                _log.warning("skipped: %s", error)
        return found

    def _row(self, where: str, record: Any) -> Row:
        if isinstance(record, InputError):
            raise record
        if not isinstance(record, Mapping):
            raise InputError(f'{where}: expected an object such as {{"query": "…", "response": "…"}}')
        texts = []
        for column in self.columns or _columns_of(where, record):
            if column not in record:
                hint = nearest(column, list(map(str, record)), "column")
                raise InputError(f"{where}: has no {column!r} (--prompt_column, --response_column){hint}")
            if not isinstance(record[column], str) or not record[column].strip():
                raise InputError(f"{where}: {column!r} is {one_line(repr(record[column]), 60)}, but must be a text")
            require_unicode(record[column], f"{where}: {column!r}")
            texts.append(record[column].strip())
        return Row(*texts, where)


def _columns_of(where: str, record: Mapping) -> tuple[str, str]:
    """The first pair in `COLUMNS` that a record has."""
    for pair in COLUMNS:
        if pair[0] in record and pair[1] in record:
            return pair
    known = ", ".join(" and ".join(pair) for pair in COLUMNS)
    names = one_line(", ".join(map(str, record)), 80) or "none"
    lists = [name for name, value in record.items() if isinstance(value, list)]
    advice = (
        f"save the list in {lists[0]!r} as a separate file"
        if lists
        else "name two with --prompt_column and --response_column"
    )
    raise InputError(f"{where}: its columns are {names}, not {known}; {advice}")


def read_rows(path: str | os.PathLike, reader: RowReader, flag: str = "--data_file") -> list[Row]:
    """Read the rows of a JSONL file, or of a JSON file with a list of objects. In messages, ``flag`` precedes the path.

    Raises:
        InputError: the file cannot be read, or a row is bad and the reader does not skip it (the message names the
            file, the line or number, and the reason).
        MissingSplit: the file holds no rows.
    """
    text, skipped = read_text(path, flag), reader.skipped
    records = _json_records(path, text) if text.lstrip()[:1] == "[" else _lines(path, text)
    rows = reader.rows(records)
    if not rows:
        without = f"; all {reader.skipped - skipped:,} were skipped" if reader.skipped > skipped else ""
        raise MissingSplit(f"{flag} {one_line(path)}: holds no rows{without}")
    return rows


def _lines(path: str | os.PathLike, text: str) -> Iterator[tuple[str, Any]]:
    # Not splitlines, which also splits at separators that JSON strings may contain.
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{Path(path).name} line {number}"
        if line.strip():
            try:
                yield where, json.loads(line)
            except (ValueError, RecursionError) as error:
                advice = "; each line must be a separate object" if number == 1 else ""
                yield where, InputError(f"{where}: not JSON ({getattr(error, 'msg', error)}){advice}")


def _json_records(path: str | os.PathLike, text: str) -> Iterator[tuple[str, Any]]:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(f"{one_line(path)}{line}: not JSON ({getattr(error, 'msg', error)})") from None
    for number, record in enumerate(records, 1):
        yield f"{Path(path).name} entry {number}", record


def held_out(
    rows: Sequence[Row], fraction: float, seed: int, stream: int = 0, flag: str = "--held_out_fraction"
) -> tuple[list[Row], list[Row]]:
    """Shuffle the rows with ``seed``, and return all but the last ``fraction`` of them, and the rest.

    ``flag`` is the flag for the fraction, for messages.

    Raises:
        MissingSplit: one of the two parts would be empty.
    """
    count = round(len(rows) * fraction)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(mix(seed, _SPLIT_STREAM, stream)))
    mixed = [rows[index] for index in order.tolist()]
    if not 0 < count < len(rows):
        rest = len(rows) - count
        raise MissingSplit(
            f"{flag} {fraction:g} of {len(rows)} row{'s' * (len(rows) != 1)} leaves {rest} to train on and {count} to "
            f"evaluate on: give more rows, or another {flag}"
        )
    return mixed[: len(rows) - count], mixed[len(rows) - count :]
