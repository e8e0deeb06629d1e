import json

import pytest

from onelora_vision.cli.convert import _read_names
from onelora_vision.data.depth.frames import read_list
from onelora_vision.data.depth.jsonl import jsonl
from onelora_vision.data.depth.kitti import kitti
from onelora_vision.data.depth.nyu import nyu
from onelora_vision.errors import InputError
from onelora_vision.storage.textfiles import named_file, read_lines, read_text
from onelora_vision.training.command_line import parse_config
from onelora_vision.training.config import TrainingConfig

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16"]  # the last two write a byte-order mark


@pytest.fixture(params=ENCODINGS)
def write(request, tmp_path):
    """Writes a file as an editor on Windows does; returns its path."""

    def write(name, text):
        (tmp_path / name).write_bytes(text.replace("\n", "\r\n").encode(request.param))
        return tmp_path / name

    return write


def test_marks_and_line_ends_are_no_text(write):
    assert read_lines(write("a.txt", "äpple\n\npear\n")) == ["äpple", "", "pear"]


@pytest.mark.parametrize("content", [b"caf\xe9", b"\xff\xfe\x00"])
def test_other_encodings_and_missing_files_are_one_line(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=r"--flag .*a\.txt: cannot be read as text; save it as UTF-8"):
        read_text(tmp_path / "a.txt", "--flag")
    with pytest.raises(InputError, match=r"b\.txt: cannot be read \(No such file"):
        read_text(tmp_path / "b.txt")


def test_backslashes_separate_folders_unless_a_file_is_called_so(tmp_path):
    assert named_file(tmp_path, r"a\b.png") == tmp_path / "a" / "b.png"
    (tmp_path / r"a\b.png").touch()
    assert named_file(tmp_path, r"a\b.png") == tmp_path / r"a\b.png"


def test_every_list_that_users_write_is_read_so(write, tmp_path):
    (tmp_path / "sub").mkdir()
    entry = {"image": r"sub\a.png", "depth": r"sub\a.npy", "mask": r"sub\m.png", "split": "test"}
    (pair,) = jsonl(str(write("metadata.jsonl", json.dumps(entry) + "\n")), "test").pairs
    assert [pair.image, pair.depth, pair.mask] == [tmp_path / "sub" / name for name in ("a.png", "a.npy", "m.png")]
    assert read_list(write("list.txt", "a b\n\nc d\n")) == [["a", "b"], ["c", "d"]]
    files = write("split.txt", "\\sub\\a.png \\sub\\d.png 518\n")
    for reader in (nyu, kitti):
        (pair,) = reader(str(tmp_path), "test", str(files)).pairs
        assert [pair.image, pair.depth] == [tmp_path / "sub" / "a.png", tmp_path / "sub" / "d.png"]
    assert _read_names(str(write("names.txt", "hot dog\npie\n\n"))) == ["hot dog", "pie"]
    path = write("config.yaml", "method: lora\noutput_dir: out\\mine\nhub_model_id: null\n")
    config = parse_config(TrainingConfig, ["--config", str(path), "--rank=2"])
    assert (config.method, config.output_dir, config.rank) == ("lora", "out/mine", 2)
