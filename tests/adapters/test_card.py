import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from tiny_hosts import make_adapter, save_base, trained_on

from onelora_vision.adapters import hub
from onelora_vision.adapters.bases import load_base
from onelora_vision.adapters.export import export
from onelora_vision.adapters.file import read_adapter, write_adapter
from onelora_vision.adapters.hub import push_adapter
from onelora_vision.backbones.base import output_of
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
        "from onelora_vision import load_adapted",
        'adapted.sample(["a"]',
        "--to peft-miss",
        "load_lora_adapter",
        "--to comfy",
        "DiTPipeline.from_pretrained",
    ):
        assert line in generation, line
    assert "depth = adapted(image)" in card_of(tmp_path / "d", "transformers")
    assert "timm.create_model" in card_of(tmp_path / "v", "timm")


def test_says_what_the_base_predicts(tmp_path):
    text = card_of(tmp_path / "a", "diffusers", extra={"objective": "velocity, image at t=1"})
    assert "- the base predicts velocity, image at t=1" in text
    assert "`DiTPipeline` cannot sample a network that predicts the velocity" in text
    assert "cannot sample" not in card_of(tmp_path / "b", "diffusers", extra={"objective": "epsilon"})


def test_metrics_of_the_old_data_are_on_the_card_but_not_those_of_the_data_set(tmp_path):
    metrics = {"before": {"top1": 0.5, "retention_top1": 0.9}, "after": {"top1": 0.7, "retention_top1": 0.6}}
    extra = {"retention": "100 *old* images"}
    text = card_of(tmp_path / "a", "timm", metrics=metrics, protocol="50 images", extra=extra)
    assert "| retention_top1 | 0.9 | 0.6 |" in text and "Retention: 100 \\*old\\* images" in text
    (index,) = fields_of(text)["model-index"]
    assert [metric["type"] for metric in index["results"][0]["metrics"]] == ["top1"]


def fields_of(text):
    return yaml.safe_load(text.split("---")[1])


def test_front_matter_is_yaml_whatever_the_names(tmp_path):
    text = card_of(tmp_path / "a", "timm", base="a: b\t#", license="mit", data="3 pictures", method="x: [y")
    fields = fields_of(text)
    assert fields["license"] == "mit" and fields["tags"] == ["onelora_vision", "x: [y"] and "base_model" not in fields
    assert "Trained on 3 pictures." in text


@pytest.mark.parametrize(
    ("base", "library", "expected"),
    [
        ("facebook/DiT-XL-2-256", "diffusers", "facebook/DiT-XL-2-256"),
        ("vit_base_patch16_224.augreg_in21k", "timm", "timm/vit_base_patch16_224.augreg_in21k"),
        ("vit_base_patch16_224", "timm", None),
        ("embedded/vit", "timm", None),
        ("/models/vit", "timm", None),
        ("a/b/c", "transformers", None),
    ],
)
def test_base_model_is_an_id_of_the_hub_or_left_out(tmp_path, base, library, expected):
    call = {"library": library, "class": "", "source": base, "options": {}}
    text = card_of(tmp_path / "a", "timm", base=base, extra={"host": call})
    assert fields_of(text).get("base_model") == expected


def test_the_hub_accepts_the_front_matter(tmp_path):
    from huggingface_hub import ModelCardData
    from huggingface_hub.repocard_data import model_index_to_eval_results

    training = {"dataset": "ethz/food101", "learning_rate": 0.001, "steps": 500, "hardware": "CPU"}
    metrics = {"before": {"top1": 0.1}, "after": {"top1": 0.9, "ece": float("nan")}}
    text = card_of(
        tmp_path / "a", "timm", license="my-own", metrics=metrics, extra={"training": training}, protocol="1 image"
    )
    fields = fields_of(text)
    assert (fields["license"], fields["license_name"]) == ("other", "my-own")
    assert fields["pipeline_tag"] == "image-classification" and fields["datasets"] == ["ethz/food101"]
    _, (result,) = model_index_to_eval_results(fields["model-index"])
    assert (result.metric_type, result.metric_value, result.dataset_name) == ("top1", 0.9, "ethz/food101")
    ModelCardData(**{**fields, "model-index": None})
    for row in ("| learning rate | 0.001 |", "| steps | 500 |", "| hardware | CPU |"):
        assert row in text


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.usefixtures("forked_reloads")
@pytest.mark.parametrize(
    ("host", "to", "extra"),
    [
        ("timm", "peft-miss", {}),
        ("transformers", "peft-miss", {"max_depth": 20}),
        ("transformers", "peft-lora", {"max_depth": 20}),
        ("diffusers", "peft-lora", {"fuse_qkv": True}),
    ],
)
def test_the_code_on_the_card_of_an_export_gives_the_adapters_outputs(tmp_path, host, to, extra):
    adapter = trained_on(save_base(host, tmp_path / "base"), host, tmp_path / "a", "onelora", extra=extra)
    export(adapter.path, to, tmp_path / "x")
    (code,) = python_blocks((tmp_path / "x" / "README.md").read_text())
    scope = {}
    exec(code.replace("path/to/this/folder", str(tmp_path / "x")), scope)
    base = load_base(adapter.info)
    base.compute_like_host(with_config=False)
    inputs = base.example()
    with torch.no_grad():
        found = output_of(scope["model"].eval(), base.host_inputs(inputs))
        expected = output_of(adapter.attach(base.model).eval(), inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


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
