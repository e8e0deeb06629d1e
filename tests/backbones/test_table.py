import subprocess
import sys

import pytest

from onelora_vision import embedded
from onelora_vision.backbones import config_file
from onelora_vision.backbones.table import ROWS, base_class

PLUGIN = """
from onelora_vision.backbones.table import ROWS, Row

ROWS.insert(0, Row("depth", "my_base:MyBase", ("mine",)))


class MyBase:
    pass
"""
ASK = """
import json
from onelora_vision.backbones.table import base_class
json.dump({"model_type": "mine"}, open("config.json", "w"))
try:
    print(*(base_class("depth", place).__name__ for place in (".", "embedded/depth", "nobody.pt")))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def installed(tmp_path):
    """What pip leaves of a package with an entry point; returns what a process with it says of a base's class."""

    def install(code):
        (tmp_path / "my_base.py").write_text(code)
        info = tmp_path / "my_base-0.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-base\nVersion: 0.1\n")
        (info / "entry_points.txt").write_text("[onelora_vision.plugins]\nmine = my_base\n")
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{ASK}"
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    return install


def test_an_installed_package_adds_a_family(installed):
    assert installed(PLUGIN) == "MyBase DepthAnythingBase DepthAnythingBase"  # the others stay with theirs


def test_the_family_of_an_embedded_base_is_known_without_the_hub(monkeypatch):
    monkeypatch.setattr(config_file, "_from_hub", lambda repository: pytest.fail(f"asked the hub for {repository}"))
    assert base_class("depth", "embedded/depth").__name__ == "DepthAnythingBase"
    assert base_class("generation", embedded.DIT).__name__ == "DiTBase"
    assert base_class("generation", "embedded/sit").__name__ == "DiTBase"
    assert config_file.config_of(embedded.DIT)["_class_name"] == "DiTTransformer2DModel"


def test_every_task_has_one_default_family():
    defaults = [row.task for row in ROWS if row.is_default]
    assert sorted(defaults) == sorted({row.task for row in ROWS})


def test_a_package_that_cannot_be_imported_is_named(installed):
    said = installed("raise ImportError('no such thing')")
    assert said == (
        "InputError the installed package my-base names my_base in its entry points onelora_vision.plugins, but it cannot "
        "be imported (ImportError: no such thing); fix or uninstall it"
    )
