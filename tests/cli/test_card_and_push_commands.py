from PIL import Image
from tiny_hosts import make_adapter

from onelora_vision.adapters import hub
from onelora_vision.adapters.files import read_adapter


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
