"""Adapters from strangers: whole and sound, or one clear line, and the session goes on."""

import pickle
import re
import shutil
import zipfile

import pytest

from app.library import unique_name
from app.sessions import MAX_SESSIONS
from app.studio import Studio
from onelora_vision.adapters.file import read_adapter, write_adapter
from onelora_vision.errors import InputError


@pytest.fixture(scope="module")
def adapter(make_adapter):
    return make_adapter("classification")


@pytest.fixture(scope="module")
def folder(make_adapter, tmp_path_factory):
    return make_adapter("classification", 2, place=tmp_path_factory.mktemp("folder") / "mine")


@pytest.fixture
def studio(tmp_path):
    return Studio(root=tmp_path / "root", max_upload=200_000)


def test_files_zips_and_folders_are_taken(studio, adapter, folder, tmp_path):
    session = studio.session("a")
    assert studio.upload(session, [adapter]) == (["classification-onelora-1"], [])
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    assert studio.upload(session, files) == (["adapter"], [])
    other = studio.session("b")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder.parent, folder.name)
    assert studio.upload(other, [archive]) == (["packed"], [])
    assert [row["removable"] for row in studio.rows(other)] == [False, False, False, True]
    assert studio.upload(other, files) == ([], ["adapter: is open already, as packed"])
    other.remove("packed")
    assert "packed" not in other.entries() and "adapter" in session.entries()
    with pytest.raises(InputError, match="only adapters that you added"):
        other.remove(studio.rows(other)[0]["name"])


def make_bad(kind, adapter, place):
    if kind == "pickle":
        (place / "x.safetensors").write_bytes(pickle.dumps(print))
    elif kind == "cut":
        (place / "x.safetensors").write_bytes(adapter.read_bytes()[:5000])
    elif kind == "text":
        (place / "x.txt").write_text("hello")
    elif kind == "config alone":
        (place / "adapter_config.json").write_text("{}")
    elif kind == "large":
        (place / "x.safetensors").write_bytes(bytes(200_001))
    else:
        with zipfile.ZipFile(place / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            name = "../../evil.safetensors" if kind == "slip" else "x.safetensors"
            archive.writestr(name, bytes(50_000_000) if kind == "bomb" else adapter.read_bytes())
    return next(place.iterdir())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickle", "pickle"),
        ("cut", "not a whole safetensors file"),
        ("text", "x.txt: not an adapter; upload a .safetensors"),
        ("config alone", "together"),
        ("large", "more than this app takes"),
        ("slip", "not a plain file in one folder"),
        ("bomb", "unpacks to 50 MB, more than this app takes"),
    ],
)
def test_a_wrong_file_is_one_clear_line_and_leaves_nothing(studio, adapter, tmp_path, kind, message):
    session, place = studio.session("a"), tmp_path / "place"
    place.mkdir()
    before = studio.rows(session)
    bad = make_bad(kind, adapter, place)
    names, (line,) = studio.upload(session, [bad])
    assert not names and line.startswith(bad.name) and re.search(message, line)
    assert "\n" not in line and "/" not in line.replace("../../evil", "")
    assert studio.rows(session) == before and not list((session.folder / "adapters").iterdir())
    assert not (tmp_path / "evil.safetensors").exists()


def test_good_files_get_in_beside_bad_ones_and_each_bad_one_is_named(studio, adapter, folder, tmp_path):
    session = studio.session("a")
    (tmp_path / "bad.zip").write_bytes(b"PK no zip")
    (tmp_path / "x.txt").write_text("hello")
    pair = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    files = [tmp_path / "bad.zip", pair[1], adapter, tmp_path / "x.txt", pair[0]]
    names, refused = studio.upload(session, files)
    assert sorted(names) == ["adapter", "classification-onelora-1"]
    assert [line.split(":")[0] for line in refused] == ["bad.zip", "x.txt"]
    assert len(list((session.folder / "adapters").iterdir())) == 2


def test_one_too_many_is_named(studio, adapter, monkeypatch):
    monkeypatch.setattr("app.sessions.MAX_OWN", 0)
    _, (line,) = studio.upload(studio.session("a"), [adapter])
    assert line == f"{adapter.name}: 0 adapters are open already; remove one first"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"resolution": 100_000}, "resolution cannot be 100000"),
        ({"resolution": "64x9999"}, "resolution 64x9999"),
        ({"resolution": [64]}, "resolution"),
        ({"max_depth": "deep"}, "max_depth cannot be 'deep'"),
        ({"max_depth": 10**9}, "max_depth cannot be 1000000000"),
    ],
)
def test_settings_that_would_fill_the_memory_are_refused(studio, adapter, tmp_path, extra, message):
    read = read_adapter(adapter)
    read.info.extra = extra
    file = write_adapter(read.config, read.tensors, read.info, tmp_path / "x.safetensors")
    names, (line,) = studio.upload(studio.session("a"), [file])
    assert not names and line.startswith("x.safetensors") and message in line


def test_the_folder_is_read_and_what_is_wrong_in_it_is_said(tmp_path, adapter, folder):
    place = tmp_path / "adapters"
    shutil.copytree(folder, place / "good")
    (place / "bad.safetensors").write_bytes(b"no")
    (place / "outside").symlink_to(folder)
    studio = Studio(place, root=tmp_path / "root")
    rows = {row["name"]: row for row in studio.rows(studio.session("a"))}
    assert rows["good"]["source"] == "folder" and not rows["good"]["enabled"]
    assert "outside" not in rows
    (problem,) = studio.problems()
    assert problem.startswith("bad.safetensors: not a whole safetensors file")
    shutil.copyfile(adapter, place / "new.safetensors")
    assert "new" in studio.session("a").entries()


def test_no_such_folder(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        Studio(tmp_path / "nowhere", root=tmp_path)


def test_sessions_do_not_see_each_other_and_end(studio, adapter):
    one, two = studio.session("one"), studio.session("two")
    (name,), _ = studio.upload(one, [adapter])
    one.set(name, True, -0.5)
    assert name not in two.entries() and name in one.enabled
    with pytest.raises(InputError, match="from -2 to 2"):
        one.set(name, True, float("nan"))
    studio.sessions.close("one")
    assert not one.folder.exists() and two.folder.exists()
    assert name not in studio.session("one").entries()
    for number in range(MAX_SESSIONS):
        studio.session(str(number))
    assert len(studio.sessions) == MAX_SESSIONS and not two.folder.exists()


def test_names_are_short_plain_and_their_own():
    assert unique_name("<b>../pie</b>", ()) == "b..pieb"
    assert unique_name("pie", ["pie", "pie-2"]) == "pie-3"
    assert unique_name("", ()) == "adapter" and len(unique_name("x" * 500, ())) == 48


def test_the_adapters_of_runs_are_found_below_the_folder_and_named_after_them(make_adapter, tmp_path):
    for place in ("runs/pets/adapter", "runs/pets/checkpoint-5/adapter", "mine"):
        make_adapter("classification", place=tmp_path / "all" / place)
    (tmp_path / "elsewhere").mkdir()
    make_adapter("classification", place=tmp_path / "elsewhere" / "secret")
    (tmp_path / "all" / "link").symlink_to(tmp_path / "elsewhere")
    found, problems = Studio(tmp_path / "all", root=tmp_path / "root").library.entries()
    assert [entry.name for entry in found if entry.source == "folder"] == ["mine", "pets"] and not problems
