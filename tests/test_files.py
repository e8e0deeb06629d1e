import json
import os
import stat

import pytest

from onelora_vision.files import atomic_directory, atomic_file, clear_leftovers, write_json


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
        with atomic_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "checkpoint"
    for content in ("old", "new"):
        with atomic_directory(target) as temporary:
            (temporary / content).write_text(content)
            (temporary / "sub").mkdir()
            (temporary / "sub" / "file").write_text("x")
    assert sorted(os.listdir(target)) == ["new", "sub"]
    assert os.listdir(tmp_path) == ["checkpoint"]


def test_a_failure_leaves_the_old_folder_and_no_rest(tmp_path):
    target = tmp_path / "checkpoint"
    with atomic_directory(target) as temporary:
        (temporary / "old").write_text("")
    with pytest.raises(OSError, match="disk full"), atomic_directory(target) as temporary:
        (temporary / "new").write_text("")
        raise OSError("disk full")
    assert os.listdir(target) == ["old"]
    assert os.listdir(tmp_path) == ["checkpoint"]


@pytest.mark.parametrize("renames", [1, 2])
def test_a_process_killed_while_it_replaces_a_folder_loses_none(tmp_path, renames):
    target = tmp_path / "adapter"
    with atomic_directory(target) as temporary:
        (temporary / "old").write_text("")
    child = os.fork()
    if child == 0:
        real, calls = os.replace, []

        def replace_or_die(*paths):
            calls.append(paths)
            if len(calls) > renames:  # the old folder is aside, the new one not yet in its place
                os._exit(9)
            real(*paths)
            if len(calls) == renames == 2:
                os._exit(9)

        os.replace = replace_or_die
        with atomic_directory(target) as temporary:
            (temporary / "new").write_text("")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert target.exists() == (renames == 2)
    clear_leftovers(tmp_path)
    assert os.listdir(target) == [{1: "old", 2: "new"}[renames]]
    assert os.listdir(tmp_path) == ["adapter"]


def test_json_is_readable_and_refuses_nan(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"name": "größe", "values": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "größe", "values": [1, 2.5, None]}
    assert "größe" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text())["name"] == "größe"
