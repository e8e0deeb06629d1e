import os
from pathlib import Path

import numpy as np
import pytest
import torch

from onelora_vision.backbones.dit_original import save_original
from onelora_vision.errors import InputError
from onelora_vision.plots.figures import saved_figure
from onelora_vision.storage.outputs import (
    LEDGER,
    Ledger,
    check_additions,
    check_file,
    check_folder,
    file_output,
    folder_output,
    is_marked,
)


def write(folder, content="x", kind="samples", **options):
    with folder_output(folder, kind, **options) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text(content)


def test_a_new_folder_lists_its_files(tmp_path):
    write(tmp_path / "out")
    ledger = Ledger.read(tmp_path / "out")
    assert ledger.kind == "samples" and list(ledger.hashes) == ["inner/file"] and ledger.foreign() == []


def test_an_earlier_output_is_replaced_only_on_request_and_only_by_its_kind(tmp_path):
    write(tmp_path / "out")
    with pytest.raises(InputError, match="out exists already: set --overwrite to replace it"):
        write(tmp_path / "out", "y")
    with pytest.raises(InputError, match=r"an output of another kind \(samples\)"):
        write(tmp_path / "out", "y", "adapter", overwrite=True)
    write(tmp_path / "out", "y", overwrite=True)
    assert (tmp_path / "out" / "inner" / "file").read_text() == "y"


@pytest.mark.parametrize("change", ["added", "an empty folder", "edited", "linked", "listed without a hash"])
def test_an_output_with_foreign_files_is_not_replaced(tmp_path, change):
    write(tmp_path / "out")
    if change == "added":
        (tmp_path / "out" / "notes.md").write_text("mine")
    elif change == "an empty folder":
        (tmp_path / "out" / "mine" / "later").mkdir(parents=True)
    elif change == "edited":
        (tmp_path / "out" / "inner" / "file").write_text("mine")
    elif change == "linked":
        (tmp_path / "elsewhere").write_text("x")
        (tmp_path / "out" / "inner" / "file").unlink()
        (tmp_path / "out" / "inner" / "file").symlink_to(tmp_path / "elsewhere")
    else:
        with open(tmp_path / "out" / LEDGER, "a") as file:
            file.write('{"file": "notes.md"}\n')
        (tmp_path / "out" / "notes.md").write_text("mine")
    before = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    with pytest.raises(InputError, match="contains files that onelora_vision did not write, or that were changed"):
        write(tmp_path / "out", "y", overwrite=True)
    assert {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")} == before


def test_foreign_files_that_appear_while_the_output_is_made_are_kept(tmp_path):
    write(tmp_path / "out")
    with pytest.raises(InputError, match="notes"), folder_output(tmp_path / "out", "samples", overwrite=True):
        (tmp_path / "out" / "notes").write_text("mine")
    assert (tmp_path / "out" / "notes").read_text() == "mine"
    with pytest.raises(InputError, match="new"), folder_output(tmp_path / "new", "samples"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "notes").write_text("mine")
    assert os.listdir(tmp_path / "new") == ["notes"]
    assert sorted(os.listdir(tmp_path)) == ["new", "out"]


@pytest.mark.parametrize("place", [".", "..", "../", "link", "file", "sub/../..", "/", "/dev"])
def test_places_with_files_of_others_are_refused(tmp_path, monkeypatch, place):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "sub").mkdir()
    (tmp_path / "here" / "file").write_text("mine")
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "here" / "link").symlink_to(tmp_path)
    with pytest.raises(InputError, match="choose"):
        check_folder(place, "samples", overwrite=True)


def test_an_empty_folder_can_be_the_current_one_or_a_link(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    monkeypatch.chdir(tmp_path / "empty")
    write(".")
    assert Path("inner/file").read_text() == "x"
    with pytest.raises(InputError, match="contains the current folder"):
        write(".", overwrite=True)
    monkeypatch.chdir(tmp_path)
    write("link", "y", overwrite=True)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "empty" / "inner" / "file").read_text() == "y"


@pytest.mark.parametrize("check", [check_folder, check_additions, check_file])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/below/it", "cannot be written: .*file is not a folder"),
        ("x" * 300, "a name in it is too long for this file system"),
        ("y" * 300 + "/a", "a name in it is too long for this file system"),
        ("", "the output has an empty name"),
    ],
)
def test_a_place_that_cannot_be_made_is_refused_before_any_work(tmp_path, check, name, reason):
    (tmp_path / "file").write_text("x")
    arguments = {check_folder: ("samples",), check_additions: ("samples", ["a"]), check_file: ()}[check]
    with pytest.raises(InputError, match=reason):
        check(str(tmp_path / name) if name else "", *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_output_is_not_inside_its_input(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for place in ("a", "a/", "a/inner", "b/../a/x", "link", "link/x"):
        with pytest.raises(InputError, match=r"is the input .*a, or inside it"):
            check_folder(tmp_path / place, "samples", inputs=[tmp_path / "a"])
        with pytest.raises(InputError, match=r"is the input .*a, or inside it"):
            check_file(tmp_path / place, inputs=[tmp_path / "a"])
    check_folder(tmp_path / "ab", "samples", inputs=[tmp_path / "a"])


def figure(path):
    with saved_figure(path, (1, 1)):
        pass


WRITERS = {
    "x.safetensors": lambda path, **options: save_original({"x": torch.zeros(1)}, path, **options),
    "x.pt": lambda path, **options: save_original({"x": torch.zeros(1)}, path, **options),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_is_replaced_if_it_says_that_we_wrote_it(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert is_marked(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} exists already"):
        WRITERS[name](tmp_path / name)
    WRITERS[name](tmp_path / name, overwrite=True)
    assert is_marked(tmp_path / name) and os.listdir(tmp_path) == [name]


def test_pictures_have_the_mark(tmp_path):
    figure(tmp_path / "x.png")
    assert is_marked(tmp_path / "x.png")


@pytest.mark.parametrize("name", ["x.safetensors", "x.png", "x.pt", "x.npz", "x.md", "x"])
def test_a_file_of_others_is_never_replaced(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    for overwrite in (False, True):
        message = f"{name} exists and was not written by onelora_vision"
        with pytest.raises(InputError, match=message), file_output(tmp_path / name, overwrite=overwrite):
            raise AssertionError
    assert (tmp_path / name).read_bytes() == b"mine"
    if name == "x.npz":
        np.savez(tmp_path / name, a=np.zeros(1))
        assert not is_marked(tmp_path / name)


def test_a_ledger_grows_file_by_file_and_keeps_off_files_of_others(tmp_path):
    ledger = Ledger(tmp_path, "depth maps").create()
    for content in ("x", "y"):
        with ledger.writing_file("a/b.txt") as path:
            path.write_text(content)
    assert Ledger.read(tmp_path).foreign() == [] and (tmp_path / "a" / "b.txt").read_text() == "y"
    (tmp_path / "c.txt").write_text("mine")
    message = r"did not write, or that were changed since: c\.txt"
    with pytest.raises(InputError, match=message), ledger.writing_file("c.txt"):
        raise AssertionError
    (tmp_path / "a" / "b.txt").write_text("mine")
    with pytest.raises(InputError, match=r"a/b\.txt"), ledger.writing_file("a/b.txt") as path:
        path.write_text("z")
    assert (tmp_path / "a" / "b.txt").read_text() == "mine"


def test_a_process_killed_between_the_record_and_the_rename_leaves_its_old_file_ours(tmp_path):
    ledger = Ledger(tmp_path, "run").create()
    with ledger.writing_file("results.json") as path:
        path.write_text("old")
    (tmp_path / "new").write_text("new")
    ledger.record("results.json", tmp_path / "new")
    (tmp_path / "new").unlink()
    with open(tmp_path / LEDGER, "a") as file:
        file.write('{"file": "res')  # a line cut off
    assert Ledger.read(tmp_path).foreign() == []


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"kind": 1', b'{"other": 1}'])
def test_a_damaged_ledger_owns_nothing(tmp_path, content):
    write(tmp_path / "out")
    (tmp_path / "out" / LEDGER).write_bytes(content)
    with pytest.raises(InputError, match="a folder with files that onelora_vision did not write"):
        check_folder(tmp_path / "out", "samples", overwrite=True)
