import subprocess
import sys

import pytest

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
    print(base_class("depth", ".").__name__)
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
        (info / "entry_points.txt").write_text("[onelora_vision.bases]\nmine = my_base\n")
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{ASK}"
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    return install


def test_an_installed_package_adds_a_family(installed):
    assert installed(PLUGIN) == "MyBase"


def test_a_package_that_cannot_be_imported_is_named(installed):
    said = installed("raise ImportError('no such thing')")
    assert said == (
        "InputError the installed package my-base names my_base in its entry points onelora_vision.bases, but it cannot "
        "be imported (ImportError: no such thing); fix or uninstall it"
    )
