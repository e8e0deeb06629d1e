import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from onelora_vision.errors import WriteError
from onelora_vision.storage.files import atomic_directory, atomic_file, clear_leftovers, write_json


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.suffix == ".txt"
    assert target.read_text() == "new"
    with pytest.raises(RuntimeError), atomic_file(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["file.txt"]


def test_files_have_the_rights_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "file") as temporary:
            temporary.write_text("")
        with atomic_directory(tmp_path / "folder") as folder:
            (folder / "weights").touch(0o600)  # as safetensors writes it
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "folder" / "weights").stat().st_mode) == 0o640


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "checkpoint"
    for content in ("old", "new"):
        with atomic_directory(target, replace=True) as temporary:
            (temporary / content).write_text(content)
            (temporary / "sub").mkdir()
            (temporary / "sub" / "file").write_text("x")
    assert sorted(os.listdir(target)) == ["new", "sub"]
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_failure_leaves_the_old_folder_and_no_rest(tmp_path):
    target = tmp_path / "checkpoint"
    with atomic_directory(target) as temporary:
        (temporary / "old").write_text("")
    with pytest.raises(OSError, match="disk full"), atomic_directory(target, replace=True) as temporary:
        (temporary / "new").write_text("")
        raise OSError("disk full")
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["checkpoint"]


REPLACE_AND_DIE = """
import os, sys
from onelora_vision.storage.files import atomic_directory
target, renames = sys.argv[1], int(sys.argv[2])
real, calls = os.rename, []
def rename_and_die(*paths):
    real(*paths)
    calls.append(paths)
    if len(calls) == renames:
        os._exit(9)
os.rename = rename_and_die
with atomic_directory(target, replace=True) as temporary:
    (temporary / "new").write_text("")
"""


@pytest.mark.parametrize("renames", [1, 2])
def test_a_process_killed_while_it_replaces_a_folder_loses_none(tmp_path, renames):
    target = tmp_path / "adapter"
    with atomic_directory(target) as temporary:
        (temporary / "old").write_text("")
    # In a process of its own: 1 rename leaves the old folder aside and the new one not yet in its place.
    done = subprocess.run([sys.executable, "-c", REPLACE_AND_DIE, str(target), str(renames)])
    assert done.returncode == 9 and target.exists() == (renames == 2)
    clear_leftovers(tmp_path)
    assert os.listdir(target) == [{1: "old", 2: "new"}[renames]]
    assert os.listdir(tmp_path) == ["adapter"]


def test_a_folder_with_files_is_not_replaced_unless_asked(tmp_path):
    target = tmp_path / "results"
    target.mkdir()
    (target / "notes").write_text("mine")
    with pytest.raises(WriteError, match=r"could not write .*results: Directory not empty"), atomic_directory(target):
        pass
    assert (target / "notes").read_text() == "mine" and os.listdir(tmp_path) == ["results"]


def test_an_empty_folder_is_filled_also_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with atomic_directory(".") as temporary:
        (temporary / "file").write_text("x")
    assert os.listdir() == ["file"] and Path("file").read_text() == "x"


def test_a_failure_while_an_empty_folder_is_filled_leaves_it_empty(tmp_path, monkeypatch):
    def fail(*paths, real=os.rename):
        if str(paths[1]).endswith("/b"):
            raise OSError(5, "Input/output error")
        real(*paths)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(WriteError, match="Input/output error"), atomic_directory(tmp_path) as temporary:
        (temporary / "a").write_text("")
        (temporary / "b").write_text("")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch, failing):
    target, calls = tmp_path / "adapter", []
    with atomic_directory(target) as temporary:
        (temporary / "old").write_text("")

    def fail(*paths, real=os.rename):
        calls.append(paths)
        if len(calls) == failing:
            raise OSError(16, "Device or resource busy")  # as for a mount point
        real(*paths)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(WriteError, match="resource busy"), atomic_directory(target, replace=True) as temporary:
        (temporary / "new").write_text("")
    assert os.listdir(target) == ["old"] and os.listdir(tmp_path) == ["adapter"]


def test_json_is_readable_and_refuses_nan(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"name": "größe", "values": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "größe", "values": [1, 2.5, None]}
    assert "größe" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text())["name"] == "größe"
