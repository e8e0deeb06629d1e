from types import SimpleNamespace

import pytest
from huggingface_hub import HfApi
from PIL import Image
from tiny_hosts import make_adapter

from onelora_vision.adapters import hub
from onelora_vision.adapters.file import read_adapter


def test_card_takes_licence_data_and_pictures_and_keeps_them(onelora, tmp_path):
    before = make_adapter(tmp_path / "a")
    Image.new("RGB", (4, 4)).save(tmp_path / "loss.png")
    arguments = ["--license", "mit", "--data", "ten digits", "--picture", tmp_path / "loss.png"]
    code, result, _ = onelora("card", tmp_path / "a", *arguments, "--json")
    assert code == 0 and result["pictures"] == ["loss.png"]
    code, _, _ = onelora("card", tmp_path / "a")  # again: nothing is lost
    text = (tmp_path / "a" / "README.md").read_text()
    assert code == 0 and "license: mit" in text and "ten digits" in text and "![loss.png]" in text
    assert read_adapter(tmp_path / "a").tensors.keys() == before.tensors.keys()
    code, _, err = onelora("card", tmp_path / "none")
    assert code == 2 and err.count("\n") == 1


def test_push(onelora, tmp_path, monkeypatch):
    make_adapter(tmp_path / "a")
    monkeypatch.setattr(hub, "push_adapter", lambda folder, repo_id, private: f"https://hub/{repo_id}?{private}")
    code, text, _ = onelora("push", tmp_path / "a", "me/pie", "--private")
    assert code == 0 and "https://hub/me/pie?True" in text


@pytest.mark.parametrize("name", ["me/my pie", "a/b/c", "", "-x", "me/pie.git"])
def test_names_that_no_repository_can_have_are_refused_before_the_hub_is_asked(onelora, tmp_path, monkeypatch, name):
    make_adapter(tmp_path / "a")
    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **options: pytest.fail("the hub was asked"))
    code, _, err = onelora("push", tmp_path / "a", "--", name)
    assert code == 2 and "cannot be a repository's name on the hub" in err and err.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("no route\nto host"), OSError("refused"), ValueError("bad token")])
def test_a_hub_that_cannot_be_reached_is_one_line(onelora, tmp_path, monkeypatch, error):
    make_adapter(tmp_path / "a")

    def fail(*args, **options):
        raise error

    monkeypatch.setattr(HfApi, "create_repo", fail)
    code, _, err = onelora("push", tmp_path / "a", "me/pie")
    assert code == 2 and "me/pie: the hub did not take the adapter" in err and err.count("\n") == 1


def test_a_name_alone_is_a_repository_of_ones_own(tmp_path, monkeypatch):
    make_adapter(tmp_path / "a")
    uploads = []
    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **options: SimpleNamespace(repo_id="me/pie"))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: uploads.append(options["repo_id"]))
    assert hub.push_adapter(tmp_path / "a", "pie").endswith("/me/pie") and uploads == ["me/pie"]
