"""What a stranger's file can make the app download: bases that its operator allows, of safetensors, up to a size."""

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest

from app.hub import KNOWN_BASES, fetch_base
from app.studio import Studio
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.errors import InputError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub of one repository: file name -> size; what was downloaded is in ``asked``."""
    hub = SimpleNamespace(files={}, asked=[], folder=tmp_path)

    def model_info(self, repo_id, **options):
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in hub.files.items()]
        return SimpleNamespace(siblings=siblings, sha="0a1b")

    def snapshot_download(repo_id, *, revision=None, allow_patterns=(), local_files_only=False, **options):
        hub.asked.append((repo_id, revision, sorted(allow_patterns)))
        return str(hub.folder)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return hub


def test_a_base_is_fetched_without_pickles_and_code(hub):
    hub.files = {"config.json": 10, "model.safetensors": 90, "pytorch_model.bin": 10**12, "model.py": 5}
    assert fetch_base("owner/base", limit=100) == hub.folder
    assert hub.asked == [("owner/base", "0a1b", ["config.json", "model.safetensors"])]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"model.safetensors": 2_000_000},
            "2 MB, and at most 1 MB are taken; the app's operator can set --max_base_mb",
        ),
        ({"model.safetensors": None}, "of unknown size"),
        ({"model.bin": 10}, "has no safetensors files.*--bases FOLDER"),
    ],
)
def test_what_is_too_large_or_not_safetensors_is_refused_before_the_download(hub, files, message):
    hub.files = files
    with pytest.raises(InputError, match=f"owner/base: {message}"):
        fetch_base("owner/base", limit=1_000_000)
    assert not hub.asked


def test_a_timm_name_is_its_repository(hub):
    hub.files = {"model.safetensors": 5}
    fetch_base("vit_base_patch16_224.augreg_in21k", limit=10)
    assert hub.asked[0][0] == "timm/vit_base_patch16_224.augreg_in21k"
    with pytest.raises(InputError, match="timm has no weights of that name"):
        fetch_base("vit_of_nobody", limit=10)


@pytest.mark.parametrize("name", ["stranger/huge", "vit_giant_patch14_dinov2"])
def test_a_file_does_not_choose_what_is_downloaded(hub, tmp_path, name):
    hub.files = {"model.safetensors": 5}
    studio = Studio(root=tmp_path / "root")
    with pytest.raises(InputError, match=f"is not downloaded by this app.*--hub_bases {name}"):
        studio.bases.base(AdapterInfo("classification", "", name))
    assert not hub.asked and name not in KNOWN_BASES


def test_the_operator_allows_more(hub, dit_folder, tmp_path):
    shutil.copytree(dit_folder, hub.folder / "snapshot")
    hub.folder, hub.files = hub.folder / "snapshot", {"model.safetensors": 5}
    studio = Studio(root=tmp_path / "root", hub_bases=["owner/tiny"])
    assert studio.bases.base(AdapterInfo("generation", "", "owner/tiny")).model is not None
    assert hub.asked[0][0] == "owner/tiny"
    assert studio.public(f"{hub.folder}: no") == "owner/tiny: no"


def test_what_was_downloaded_before_is_used_without_the_hub(hub, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(InputError, match=r"owner/base: could not be fetched from the hub \(no network"):
        fetch_base("owner/base", limit=1)
    (hub.folder / "model.safetensors").write_bytes(b"")
    assert fetch_base("owner/base", limit=1) == hub.folder


def test_known_bases_are_hub_ids_or_timm_names(hub):
    hub.files = {"model.safetensors": 5}
    for name in KNOWN_BASES:
        fetch_base(name, limit=10)
    assert len(hub.asked) == len(KNOWN_BASES)
