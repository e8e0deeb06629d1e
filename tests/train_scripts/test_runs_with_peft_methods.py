"""PEFT's methods through a whole run: stopped and resumed, saved, read, looked at, used."""

import json

import pytest
import torch
from PIL import Image

from app.studio import Studio
from onelora_vision.adapters.file import read_adapter
from onelora_vision.cli import main
from onelora_vision.errors import InputError
from train_scripts import train_classification

SMALL = {
    "few_shot": 1,
    "max_train_steps": 8,
    "train_batch_size": 4,
    "validation_loss_steps": 0,
    "report_to": "none",
    "eval_batch_size": 500,
    "checkpointing_steps": 4,
}


def train(output, **flags):
    with pytest.raises(SystemExit) as ended:
        train_classification.main(
            [f"--{name}={value}" for name, value in {**SMALL, "output_dir": output, **flags}.items()]
        )
    assert ended.value.code == 0
    return read_adapter(output / "adapter").tensors


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=pytest.mark.slow) for name in ("adalora", "pvera", "lokr")]
)
def test_a_run_that_was_stopped_ends_in_the_same_bits(tmp_path, method):
    whole = train(tmp_path / "whole", method=method)
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    again = train(tmp_path / "again", method=method, resume_from_checkpoint=checkpoint)
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["method"] == method and results["adapter_parameters"] > 0


@pytest.mark.slow
def test_adalora_takes_singular_values_away(tmp_path):
    tensors = train(tmp_path / "run", method="adalora", max_train_steps=20, learning_rate=1e-2)
    values = torch.cat([tensor.flatten() for name, tensor in tensors.items() if "lora_E" in name])
    layers = sum("lora_E" in name for name in tensors)
    assert len(values) == 2 * layers  # all stay in the file
    assert 0 < int((values != 0).sum()) <= layers  # target_r = 1 for the average layer


@pytest.mark.slow
def test_pissa_is_saved_for_the_base_as_it_is(tmp_path, capsys):
    (tmp_path / "pissa.yaml").write_text("peft_type: LORA\nr: 2\nlora_alpha: 2\ninit_lora_weights: pissa\n")
    train(tmp_path / "run", peft_config=tmp_path / "pissa.yaml", method="onelora")
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (4, True)
    shown = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]["after"]["top1"]
    with pytest.raises(SystemExit) as ended:
        main(["doctor", str(tmp_path / "run" / "adapter"), "--base", "embedded"])
    assert ended.value.code == 0, capsys.readouterr().out
    assert 0 < shown <= 1


def test_such_an_adapter_is_inspected_predicted_exported_and_used_in_the_app(tmp_path, capsys, monkeypatch):
    train(tmp_path / "run", method="lokr")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save("a.png")
    for command in (
        ["inspect", "run/adapter"],
        ["doctor", "run/adapter"],
        ["predict", "--adapter", "run/adapter", "a.png", "--device", "cpu"],
        ["export", "run/adapter", "--to", "peft-lora", "-o", "lora"],
        ["export", "run/adapter", "--to", "merged", "-o", "merged"],
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--json"])
        assert ended.value.code == 0, capsys.readouterr().err
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "**lokr**" in card and "LoKr" not in card.split("## Use")[0].replace("lokr", "")
    with pytest.raises(SystemExit) as ended:
        main(["blend", "run/adapter:0.5", "-o", "half"])
    assert ended.value.code == 2 and "a weighted sum of LOKR adapters is not a LOKR adapter" in capsys.readouterr().err
    studio = Studio(root=tmp_path / "root", max_upload=10**7)
    session = studio.session("one")
    (name,), _ = studio.upload(session, [tmp_path / "run" / "adapter" / "adapter_model.safetensors"])
    entry = session.entries()[name]
    assert entry.adapter.info.method == "lokr"
    from app.mix import Mix

    info = entry.adapter.info
    assert Mix(info, ((entry, 1.0),)).adapter(studio.bases.base(info)) is entry.adapter
    with pytest.raises(InputError, match="use it alone, at weight 1"):
        Mix(info, ((entry, 0.5),)).adapter(studio.bases.base(info))
