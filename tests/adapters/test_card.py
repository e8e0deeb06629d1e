from types import SimpleNamespace

import pytest
import yaml
from PIL import Image
from tiny_hosts import make_adapter

from onelora_vision.adapters import hub
from onelora_vision.adapters.file import read_adapter, write_adapter
from onelora_vision.adapters.hub import push_adapter
from onelora_vision.errors import InputError


def card_of(folder, host, **fields):
    adapter = make_adapter(folder, host)
    for name, value in fields.items():
        setattr(adapter.info, name, value)
    write_adapter(adapter.config, adapter.tensors, adapter.info, folder, overwrite=True)
    return (folder / "README.md").read_text()


def test_says_how_to_load_in_each_ecosystem(tmp_path):
    generation = card_of(tmp_path / "g", "diffusers")
    for line in (
        "import onelora_vision",
        'adapted.sample(["a"]',
        "--to peft-lora",
        "load_lora_adapter",
        "--to comfy",
        "DiTPipeline.from_pretrained",
    ):
        assert line in generation, line
    assert "depth = adapted(image)" in card_of(tmp_path / "d", "transformers")
    assert "timm.create_model" in card_of(tmp_path / "v", "timm")


def test_front_matter_is_yaml_whatever_the_names(tmp_path):
    text = card_of(tmp_path / "a", "timm", base="a: b\t#", license="mit", data="3 pictures")
    fields = yaml.safe_load(text.split("---")[1])
    assert (fields["base_model"], fields["license"]) == ("a: b\t#", "mit") and "Trained on 3 pictures." in text


def test_pictures_are_copied_and_shown(tmp_path):
    picture = tmp_path / "samples.png"
    Image.new("RGB", (4, 4)).save(picture)
    adapter = make_adapter(tmp_path / "a")
    write_adapter(adapter.config, adapter.tensors, adapter.info, tmp_path / "a", pictures=[picture], overwrite=True)
    assert (tmp_path / "a" / "samples.png").read_bytes() == picture.read_bytes()
    assert "![samples.png](samples.png)" in (tmp_path / "a" / "README.md").read_text()
    with pytest.raises(InputError, match="no such picture"):
        write_adapter(adapter.config, adapter.tensors, adapter.info, tmp_path / "b", pictures=[tmp_path / "no.png"])
    assert not (tmp_path / "b").exists()


class Api:
    endpoint = "https://hub"
    calls = []

    def __init__(self, token=None):
        pass

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", repo_id, options))
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, **options):
        self.calls.append(("upload", options["repo_id"], options))


def test_push_uploads_a_sound_folder_only(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    make_adapter(tmp_path / "a")
    assert push_adapter(tmp_path / "a", "me/pie", private=True) == "https://hub/me/pie"
    assert [call[:2] for call in Api.calls] == [("create", "me/pie"), ("upload", "me/pie")]
    assert Api.calls[0][2]["private"] and Api.calls[1][2]["folder_path"] == tmp_path / "a"
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"x")
    for folder, message in ((tmp_path / "a", "not a whole"), (tmp_path / "none", "no such folder")):
        with pytest.raises(InputError, match=message):
            push_adapter(folder, "me/pie")
    assert len(Api.calls) == 2


def test_push_says_in_one_line_why_the_hub_refused(tmp_path, monkeypatch):
    import huggingface_hub

    make_adapter(tmp_path / "a")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda *_, **__: (_ for _ in ()).throw(OSError("a\nb")))
    with pytest.raises(InputError, match=r"me/pie: the hub did not take the adapter .a b."):
        hub.push_adapter(tmp_path / "a", "me/pie")
    read_adapter(tmp_path / "a")
