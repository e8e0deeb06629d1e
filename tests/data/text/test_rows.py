import json
import logging

import pytest

from onelora_vision.data.text.formats import open_rows
from onelora_vision.data.text.rows import Row, RowReader, held_out, read_rows
from onelora_vision.errors import InputError, MissingSplit

GOOD = {"query": "What is 1 plus 1?", "response": "2. The answer is: 2", "type": "GSM_SV"}


def write(folder, *lines):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def test_jsonl_and_json_lists_have_the_same_rows(tmp_path):
    other = {"prompt": "a", "response": " b\n"}
    lines = read_rows(write(tmp_path, GOOD, "", other), RowReader())
    assert [row[:2] for row in lines] == [(GOOD["query"], GOOD["response"]), ("a", "b")]
    assert [row.where for row in lines] == ["rows.jsonl line 1", "rows.jsonl line 3"]
    (tmp_path / "rows.json").write_text(json.dumps([GOOD, other], indent=1))
    assert [row[:2] for row in read_rows(tmp_path / "rows.json", RowReader())] == [row[:2] for row in lines]


def test_columns_by_name_and_a_separator_inside_of_a_text(tmp_path):
    path = write(tmp_path, json.dumps({"q": "one\u2028line", "a": "x"}, ensure_ascii=False))
    assert read_rows(path, RowReader(("q", "a"))) == [Row("one\u2028line", "x", "rows.jsonl line 1")]


BAD = [
    ("{", "line 2: not JSON"),
    ("[1]", "line 2: expected an object"),
    ("[" * 20000, "line 2: not JSON"),
    (
        {"query": "x"},
        "line 2: its columns are query, not query and response, prompt and response, prompt and completion;",
    ),
    ({"query": "x", "completion": "y"}, "columns are query, completion, not"),
    ({"data": [GOOD]}, "save the list in 'data' as a separate file"),
    (
        '{"query": "\\ud83d", "response": "y"}',
        "line 2: 'query' is not Unicode: its character 1 is half a surrogate pair",
    ),
    ({"query": "x", "response": 5}, "line 2: 'response' is 5, but must be a text"),
    ({"query": " ", "response": "y"}, "line 2: 'query' is ' ', but must be a text"),
]


@pytest.mark.parametrize(("line", "message"), BAD)
def test_a_bad_row_is_named_or_left_out(line, message, tmp_path, caplog):
    path = write(tmp_path, GOOD, line, GOOD)
    with pytest.raises(InputError) as caught:
        read_rows(path, RowReader())
    assert message in str(caught.value) and "rows.jsonl" in str(caught.value)
    assert "--on_bad_row skip" in str(caught.value)
    reader = RowReader(on_bad_row="skip")
    with caplog.at_level(logging.WARNING):
        assert len(read_rows(path, reader)) == 2 and reader.skipped == 1
    assert message in caplog.text


def test_files_without_rows_or_with_damage(tmp_path):
    with pytest.raises(MissingSplit, match="holds no rows"):
        read_rows(write(tmp_path, ""), RowReader())
    with pytest.raises(MissingSplit, match=r"--eval_data_file .*holds no rows; all 2 were skipped"):
        read_rows(write(tmp_path, "{", {}), RowReader(on_bad_row="skip"), "--eval_data_file")
    with pytest.raises(InputError, match=r"line 1: not JSON .*; each line must be a separate object"):
        read_rows(write(tmp_path, "{", '"query": "x"}'), RowReader())
    with pytest.raises(InputError, match="not JSON"):
        read_rows(write(tmp_path, "[" * 20000), RowReader())
    (tmp_path / "rows.json").write_text('[{"query": "x",\n "response" "y"}]')
    with pytest.raises(InputError, match=r"rows.json line 2: not JSON"):
        read_rows(tmp_path / "rows.json", RowReader())
    with pytest.raises(InputError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl", RowReader())


def test_the_split_is_drawn_by_the_seed():
    rows = [Row(str(n), "x") for n in range(50)]
    train, test = held_out(rows, 0.2, seed=1)
    assert (len(train), len(test)) == (40, 10) and {*train, *test} == {*rows}
    assert held_out(rows, 0.2, seed=1) == (train, test)
    assert held_out(rows, 0.2, seed=2)[1] != test and held_out(rows, 0.2, seed=1, stream=1)[1] != test


@pytest.mark.parametrize("count", [1, 2])
def test_an_empty_split_is_refused(count):
    with pytest.raises(
        MissingSplit, match=rf"--share 0.2 of {count} rows? leaves {count} to train on and 0 to evaluate on"
    ):
        held_out([Row("a", "b")] * count, 0.2, 0, flag="--share")


def test_a_data_set_of_the_datasets_package(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([GOOD, {**GOOD, "response": None}])
    table.save_to_disk(str(tmp_path / "set"))
    with pytest.raises(InputError, match=r"train\[1\]: 'response' is None"):
        open_rows(str(tmp_path / "set"), None, RowReader())
    rows = open_rows(str(tmp_path / "set"), None, RowReader(on_bad_row="skip"))
    assert [row[:2] for row in rows] == [(GOOD["query"], GOOD["response"])]
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(MissingSplit, match="no split 'train'; it has test"):
        open_rows(str(tmp_path / "other"), None, RowReader())


def test_unknown_names_and_a_missing_file():
    with pytest.raises(InputError, match="is unknown; did you mean 'arithmetic'"):
        open_rows("arithmetics", None, RowReader())
    with pytest.raises(InputError, match="json needs --data_file"):
        open_rows("json", None, RowReader())
