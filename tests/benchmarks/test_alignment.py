import json

import pytest
import torch

from benchmarks.alignment import alignments, kind, main
from onelora_vision import apply_method, embedded
from onelora_vision.adapters.file import save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import fingerprint
from onelora_vision.backbones.vit import ViTBase, vit_adaptation
from onelora_vision.backbones.vit_heads import classifier_names


def test_a_rank_one_update_is_caught_by_its_own_vector_alone():
    v, other = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 2.0, 0.0])
    half = torch.tensor([3.0, 0.0, 0.0, 0.0])
    found = alignments(torch.outer(torch.tensor([1.0, -2.0, 0.5]), v), {"v": v, "other": other, "half": half}, top=1)
    assert found["v"]["cosines"] == pytest.approx([1.0]) and found["v"]["share"] == pytest.approx(1.0)
    assert found["other"]["share"] == pytest.approx(0.0, abs=1e-6)
    assert found["half"]["cosines"] == pytest.approx([0.5**0.5]) and found["half"]["share"] == pytest.approx(0.5)
    assert found["best"]["share"] == pytest.approx(1.0)


def test_layers_are_grouped_by_their_name_without_the_block():
    assert kind("blocks.3.attn.qkv") == "attn.qkv"
    assert kind("backbone.encoder.layer.0.mlp.fc1") == "backbone.encoder.mlp.fc1"


@pytest.fixture
def adapters(tmp_path):
    """A full adapter whose update of every qkv is b 1ᵀ, and an untrained LoRA, of the embedded ViT."""
    for method in ("full", "lora"):
        vit = ViTBase.load(str(embedded.VIT))
        mark = fingerprint(vit.model, exclude=classifier_names(vit.model))
        model = apply_method(vit.model, method, vit_adaptation(vit.model))
        if method == "full":
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and name.endswith("attn.qkv.weight"):
                    parameter.data += torch.linspace(-1, 1, len(parameter))[:, None]
        info = AdapterInfo("classification", method, str(embedded.VIT), mark, class_names=vit.class_names)
        save_adapter(model, tmp_path / method, info)
    return [f"--full={tmp_path / 'full'}", f"--lora={tmp_path / 'lora'}", f"--plot={tmp_path / 'plot.png'}"]


def test_the_sum_catches_an_update_that_is_constant_along_the_inputs(adapters, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*adapters, "--json"])
    assert ended.value.code == 0 and (tmp_path / "plot.png").stat().st_size > 1000
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["attn.qkv"] and found["attn.qkv"]["layers"] == 6  # the other layers have not changed
    assert found["attn.qkv"]["ones"]["share"] == pytest.approx(1.0, abs=1e-4)
    assert found["attn.qkv"]["random"]["share"] < 0.3
    with pytest.raises(SystemExit):
        main(adapters)
    assert "| attn.qkv (6) | 1.00, 100.0% |" in capsys.readouterr().out


def test_adapters_of_other_methods_are_refused(adapters, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([f"--full={tmp_path / 'lora'}", f"--lora={tmp_path / 'lora'}"])
    assert ended.value.code == 2 and "of method lora, expected full" in capsys.readouterr().err
