import json
import math

import pytest
import torch
from tiny_hosts import HOSTS, fresh, make_adapter, save_base, trained_on

from onelora_vision.adapters.export import export
from onelora_vision.adapters.file import write_adapter
from onelora_vision.adapters.inspection import examine


def checks(findings, level="problem"):
    return [finding["check"] for finding in findings if finding["level"] == level]


def spoilt(adapter, folder, change):
    change(adapter.tensors)
    return write_adapter(adapter.config, adapter.tensors, adapter.info, folder)


@pytest.mark.parametrize("host", HOSTS)
def test_a_good_adapter_on_its_base_has_no_finding(onelora, host, tmp_path):
    base = save_base(host, tmp_path / "base")
    trained_on(base, host, tmp_path / "a", "sum+bias+scale")
    code, result, _ = onelora("doctor", tmp_path / "a", "--base", base, "--json")
    assert (code, checks(result["findings"])) == (0, []), result


def test_spoilt_vectors_are_found(onelora, tmp_path):
    def change(tensors):
        keys = sorted(key for key in tensors if key.endswith("onelora_b"))
        tensors[keys[0]][3] = math.nan
        tensors[keys[1]].zero_()
        tensors[keys[2]].mul_(1000)
        tensors[keys[3]] = tensors[keys[3]].half()

    folder = spoilt(make_adapter(tmp_path / "a"), tmp_path / "bad", change)
    code, result, _ = onelora("doctor", folder, "--json")
    assert code == 2 and sorted(checks(result["findings"])) == ["dead", "exploding", "nan"]
    assert checks(result["findings"], "note") == ["dtype"]
    code, text, _ = onelora("doctor", folder)
    assert code == 2 and "3 problems" in text and "blocks.0.attn" in text


def test_another_base_and_one_that_does_not_fit(tmp_path):
    base = save_base("timm", tmp_path / "base")
    adapter = trained_on(base, "timm", tmp_path / "a")
    adapter.info.base_fingerprint = "0" * 32
    write_adapter(adapter.config, adapter.tensors, adapter.info, tmp_path / "b")
    assert checks(examine(tmp_path / "b", base)) == ["base"]
    cut = {key: value for key, value in adapter.tensors.items() if "blocks.1.mlp.fc1" not in key}
    write_adapter(adapter.config, cut, adapter.info, tmp_path / "c")
    findings = examine(tmp_path / "c", base)
    assert "fit" in checks(findings) and "coverage" in checks(findings, "note")
    assert checks(examine(tmp_path / "a", tmp_path / "nothing")) == ["base"]


def test_a_base_that_predicts_something_else_is_found(sit_folder, tmp_path):
    adapter = trained_on(str(sit_folder), "diffusers", tmp_path / "a", extra={"objective": "velocity, image at t=1"})
    assert checks(examine(tmp_path / "a", sit_folder)) == []
    adapter.info.extra["objective"] = "epsilon"
    write_adapter(adapter.config, adapter.tensors, adapter.info, tmp_path / "b")
    assert checks(examine(tmp_path / "b", sit_folder)) == ["objective"]


def test_layers_that_the_base_passes_by_are_found(tmp_path, monkeypatch):
    from onelora_vision.adapters import inspection
    from onelora_vision.backbones.vit import ViTBase

    model = fresh("timm")[0]

    def forward(x):
        return torch.nn.functional.linear(x, layer.weight, layer.bias)

    adapter = make_adapter(tmp_path / "a")
    layer = model.blocks[0].mlp.fc1
    model.blocks[0].mlp.forward = lambda x: model.blocks[0].mlp.fc2(forward(x).relu())

    base = ViTBase(model=model, data_config={"input_size": (3, 32, 32)}, _fingerprint="f")
    monkeypatch.setattr(inspection, "load_base", lambda info, place: base)
    (finding,) = [f for f in examine(adapter.path, "x") if f["level"] == "problem"]
    assert finding["check"] == "bypassed" and "blocks.0.mlp.fc1" in finding["text"]


def test_header_and_config_that_disagree_are_found(tmp_path):
    adapter = make_adapter(tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "compression_seed": 3}))
    assert checks(examine(adapter.path)) == ["config"]
    assert checks(examine(tmp_path / "none")) == ["file"]


def test_names_that_do_not_say_what_is_in_the_file_are_found(tmp_path):
    adapter = make_adapter(tmp_path / "a")
    adapter.info.class_names, adapter.info.task = ["a"] * len(adapter.info.class_names), "hack"
    write_adapter(adapter.config, adapter.tensors, adapter.info, tmp_path / "b")
    texts = [finding["text"] for finding in examine(tmp_path / "b") if finding["level"] == "problem"]
    assert len(texts) == 2 and "task 'hack' is not one" in texts[0] and "several classes are called a" in texts[1]


def test_small_differences_are_not_called_exploding(tmp_path):
    """After few steps most vectors are next to zero, and a hundred times that is still nothing."""

    def shrink(tensors):
        keys = sorted(key for key in tensors if key.endswith("onelora_b"))
        for number, key in enumerate(keys):
            tensors[key].fill_(1e-2 if number == 0 else 1e-6)

    folder = spoilt(make_adapter(tmp_path / "a"), tmp_path / "young", shrink)
    assert "exploding" not in checks(examine(folder))


@pytest.mark.usefixtures("forked_reloads")
def test_an_export_whose_table_has_the_size_of_the_bases_is_sound(tmp_path):
    adapter = trained_on(save_base("diffusers", tmp_path / "base"), "diffusers", tmp_path / "a")
    export(adapter.path, "peft-lora", tmp_path / "lora")
    assert "classes" not in checks(examine(tmp_path / "lora"))
