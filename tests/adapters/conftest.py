import subprocess
import sys
from types import SimpleNamespace

import pytest
from forked_python import ForkedPython

FLAGS = ["-I", "-W", "ignore"]
HOSTS = (
    "diffusers.loaders.peft",
    "diffusers.pipelines.dit.pipeline_dit",
    "peft",
    "timm",
    "transformers.models.depth_anything.modeling_depth_anything",
)


@pytest.fixture(scope="session")
def isolated():
    """A Python as exports are loaded by, with the hosts imported and nothing of ours."""
    python = ForkedPython(HOSTS, FLAGS)
    yield python
    python.close()


@pytest.fixture
def forked_reloads(isolated, monkeypatch):
    """The process that loads an export is a fork, not a fresh one: in `test_export_commands` it is."""
    from onelora_vision.adapters import export

    def run(command, capture_output, text, check):
        python, *flags = command[: 1 + len(FLAGS)]
        assert (python, flags) == (sys.executable, FLAGS)
        ((code, output, errors),) = isolated.together((command[1 + len(FLAGS) :], {}))
        return subprocess.CompletedProcess(command, code, output, errors)

    monkeypatch.setattr(export, "subprocess", SimpleNamespace(run=run))
