"""No path of this server reaches a user."""

from pathlib import Path

import pytest

from app.names import without_paths
from app.studio import Studio
from onelora_vision.adapters.file import read_adapter, write_adapter

KNOWN = {Path("/srv/My Models/dit"): "dit", Path("/tmp/root x"): "", Path("/hub/snapshots/0a1b"): "owner/base"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("trained on another base than /srv/My Models/dit (found 1)", "trained on another base than dit (found 1)"),
        ("'/srv/My Models/dit/config.json' is damaged", "'dit/config.json' is damaged"),
        ("/tmp/root x/session/0/my file.zip: no", "my file.zip: no"),
        ("on /hub/snapshots/0a1b", "on owner/base"),
        ("[Errno 2] No such file: '/a/b/c'", "[Errno 2] No such file: 'c'"),
        ("file:///a/b.png, (/a/b), error:/a/b", "b.png, (b), error:b"),
        (r"C:\Users\me\x.png", "x.png"),
        ("see https://a.b/c/d, owner/name, 224/16 and 1 / 2", "see https://a.b/c/d, owner/name, 224/16 and 1 / 2"),
    ],
)
def test_paths_become_names(text, shown):
    assert without_paths(text, KNOWN) == shown
    assert without_paths({"a": [text, 1, None]}, KNOWN) == {"a": [shown, 1, None]}


def test_lists_and_details_do_not_show_where_a_base_is(make_adapter, tmp_path):
    read = read_adapter(make_adapter("generation"))
    read.info.base = str(tmp_path / "models" / "dit")
    read.info.extra["data"] = str(tmp_path / "pictures")
    (tmp_path / "adapters").mkdir()
    write_adapter(read.config, read.tensors, read.info, tmp_path / "adapters" / "mine.safetensors")
    (tmp_path / "adapters" / "bad.safetensors").write_bytes(b"no")
    studio = Studio(tmp_path / "adapters", root=tmp_path / "root")
    session = studio.session("a")
    (row,) = [row for row in studio.rows(session) if row["name"] == "mine"]
    assert row["base"] == "dit" and str(tmp_path) not in repr(studio.rows(session))
    facts, _ = studio.details(session, "mine")
    assert facts["base"] == "dit" and str(tmp_path) not in repr(facts)
    (problem,) = studio.problems()
    assert problem.startswith("bad.safetensors: not a whole safetensors file")
