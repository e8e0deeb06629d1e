"""Adapters by their hub id, in Python and in every command that takes one."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
from PIL import Image

from onelora_vision import load_adapted
from onelora_vision.adapters.hub import fetch_adapter, local_adapter
from onelora_vision.cli import main
from onelora_vision.embedded import ADAPTERS
from onelora_vision.errors import InputError

NAME = "somebody/strokes"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one repository, `NAME`, with the files in ``folder``; what was downloaded is in ``asked``."""
    hub = SimpleNamespace(folder=tmp_path / "hub", asked=[], sizes={})

    def model_info(self, repo_id, **options):
        if repo_id != NAME:
            raise OSError(f"404: {repo_id}")
        sizes = {file.name: hub.sizes.get(file.name, file.stat().st_size) for file in hub.folder.iterdir()}
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in sizes.items()], sha="0a1b")

    def snapshot_download(repo_id, *, revision=None, allow_patterns=(), local_files_only=False, **options):
        if local_files_only:
            raise FileNotFoundError(repo_id)
        hub.asked.append((repo_id, revision, sorted(allow_patterns)))
        return str(hub.folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return hub


@pytest.fixture
def generation(hub):
    shutil.copytree(ADAPTERS / "handwriting-dit", hub.folder)
    return hub


def test_an_id_is_loaded_in_python(generation):
    assert load_adapted(NAME, device="cpu").info.task == "generation"
    assert generation.asked == [(NAME, "0a1b", ["adapter_config.json", "adapter_model.safetensors"])]


def test_a_path_of_this_machine_goes_first(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert str(local_adapter(NAME)) == NAME and not hub.asked


@pytest.mark.parametrize(
    "command",
    [
        ("sample", NAME, "-o", "out", "--num_images", "1", "--classes", "3", "--steps", "1", "--device", "cpu"),
        ("blend", f"{NAME}:0.5", NAME, "-o", "out", "--whole_from", NAME),
        ("export", NAME, "--to", "peft-miss", "-o", "out"),
        ("inspect", NAME),
        ("doctor", NAME),
    ],
    ids=lambda command: command[0],
)
def test_every_command_takes_an_id(generation, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main([*command, "--json"])
    assert ended.value.code == 0, capsys.readouterr().err
    shown = json.loads(capsys.readouterr().out)
    assert {id for id, _, _ in generation.asked} == {NAME}
    if command[0] == "sample":
        assert shown["settings"]["adapter"] == NAME  # not its place in the cache


@pytest.mark.parametrize("shipped", ["handwriting-vit", "streets-depth"])
def test_predict_takes_an_id(hub, tmp_path, monkeypatch, capsys, shipped):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ADAPTERS / shipped, hub.folder)
    Image.new("RGB", (64, 64)).save("a.png")
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--adapter", NAME, "a.png", "--device", "cpu", "--json"])
    assert ended.value.code == 0, capsys.readouterr().err


def test_what_is_neither_here_nor_on_the_hub_is_one_line(hub, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "output/adaptr"])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1
    assert "output/adaptr: no such file or folder here, and as a hub id: output/adaptr: could not be fetched" in error


def test_an_adapter_of_unknown_size_or_too_large_is_refused(generation):
    generation.sizes = {"adapter_model.safetensors": None}
    with pytest.raises(InputError, match="of unknown size"):
        fetch_adapter(NAME)
    generation.sizes = {"adapter_model.safetensors": 3 << 30}
    with pytest.raises(InputError, match=r"3221 MB, and at most 2147 MB are taken$"):
        fetch_adapter(NAME)
    assert not generation.asked


def test_the_hub_out_of_reach_is_one_line():
    with pytest.raises(InputError, match="someone/thing: could not be fetched from the hub") as caught:
        fetch_adapter("someone/thing", 10)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="is not a hub id"):
        fetch_adapter("../../etc", 10)
