"""The Python in README and docs runs, with the files and names at hand that its text speaks of."""

import ast
import csv
import importlib.util
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from code_blocks import BLOCKS, ROOT
from peft import PeftModel, get_peft_model_state_dict
from PIL import Image

from onelora_vision.adapters.file import read_adapter, write_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones import table
from onelora_vision.backbones.base import Adaptation
from onelora_vision.cli.main import main as onelora
from onelora_vision.inference.loading import load_adapted
from onelora_vision.methods.apply import apply_method
from onelora_vision.methods.names import METHODS

PYTHON = [block for block in BLOCKS if block.language == "python"]
MOST_LINES = 40
LINEARS = [f"blocks.{i}.{name}" for i in range(2) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder; afterwards accelerate and the table of methods are as they were."""
    monkeypatch.chdir(tmp_path)
    known = dict(METHODS)
    yield tmp_path
    METHODS.clear()
    METHODS.update(known)
    AcceleratorState._reset_state(reset_partial_state=True)


def tiny_vit():
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)


def run(blocks, names=None):
    """Execute blocks one after the other, as one file, and return its names."""
    code, names = "\n\n\n".join(block.text for block in blocks), {"__name__": "example", **(names or {})}
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("example", loader=None))
    sys.modules["example"] = module  # dataclasses look their module up
    try:
        module.__dict__.update(names)
        exec(compile(code, str(blocks[0]), "exec"), module.__dict__)
    finally:
        del sys.modules["example"]
    return module.__dict__


def blocks_with(page, *words):
    """The blocks of a page that hold one of the words, in order."""
    found = [b for b in PYTHON if b.page == ROOT / page and any(word in b.text for word in words)]
    assert len(found) == len(words)
    return found


def outputs(model, x):
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_it_is_python_and_short(block):
    ast.parse(block.text)
    assert len(block.text.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_start_in_python(page, capsys):
    run(blocks_with(page, "timm.create_model"))
    assert "trainable params" in capsys.readouterr().out


def test_adapters(workplace):
    base = tiny_vit()
    for number, name in enumerate(("pie", "sushi", "pie.safetensors")):
        model = apply_method(base, "onelora", Adaptation(LINEARS))
        tensors = {key: torch.full_like(p, 0.1 * (number + 1)) for key, p in get_peft_model_state_dict(model).items()}
        write_adapter(model.peft_config["default"], tensors, AdapterInfo("classification", "onelora", "tiny"), name)
        base = model.unload()
    x = torch.randn(3, 3, 16, 16)
    run(blocks_with("docs/adapters.md", 'read_adapter("pie.safetensors")'), {"base_model": tiny_vit()})
    another = read_adapter("sushi")
    given = {"base_model": tiny_vit(), "read_adapter": read_adapter, "torch": torch, "x": x, "another": another}
    bank = run(blocks_with("docs/adapters.md", "AdapterBank("), given)["bank"]
    bank.use(["pie", "sushi", "sushi"])
    assert torch.allclose(*outputs(bank, x[:1].expand(3, -1, -1, -1))[:2])  # the last line put sushi in pie's place


def test_a_backbone_of_ones_own(workplace, capsys):
    names = run(blocks_with("docs/extending.md", "class Mixer"))
    assert "top1" in capsys.readouterr().out
    x = torch.randn(2, 3, 32, 32)
    loaded = PeftModel.from_pretrained(plain_copy(names), "output/mixer/adapter")
    assert torch.equal(outputs(loaded, x), outputs(names["model"], x))


def plain_copy(names):
    """The mixer with the weights that it had before it was adapted."""
    copy = names["Mixer"](10)
    state = names["model"].get_base_model().state_dict()
    plain = {key.replace(".base_layer", "").replace(".original_module", ""): value for key, value in state.items()}
    copy.load_state_dict({key: plain[key] for key in copy.state_dict()})
    return copy


def test_a_family_of_bases(workplace, capsys, monkeypatch):
    from transformers import GLPNConfig, GLPNForDepthEstimation

    from onelora_vision.data.synthetic.scenes import render_scene

    sizes = {"num_encoder_blocks": 4, "depths": [1] * 4, "hidden_sizes": [8] * 4, "decoder_hidden_size": 8}
    config = GLPNConfig(**sizes, num_attention_heads=[1] * 4, mlp_ratios=[1] * 4, sr_ratios=[1] * 4)
    GLPNForDepthEstimation(config).save_pretrained("glpn")
    scene = render_scene("rooms", 0, 64, 64)
    Image.fromarray(scene.image).save("room.png")
    np.save("room.npy", scene.depth)
    Path("metadata.jsonl").write_text('{"image": "room.png", "depth": "room.npy"}\n')
    monkeypatch.setattr(table, "ROWS", list(table.ROWS))
    text = blocks_with("docs/extending.md", "class GLPNBase")[0].text
    Path("my_base.py").write_text(text)
    monkeypatch.syspath_prepend(str(workplace))
    import my_base

    from train_scripts.train_depth import main

    flags = "--pretrained_model_name_or_path glpn --dataset_name jsonl --train_data_dir . --resolution 64 --max_train_steps 3"
    with pytest.raises(SystemExit) as done:
        main([*flags.split(), "--output_dir", "out", "--eval_split", "train", "--report_to", "none"])
    assert done.value.code == 0, capsys.readouterr().err
    adapted = load_adapted("out/adapter")
    assert isinstance(adapted.base, my_base.GLPNBase) and adapted(Image.open("room.png")).shape == (64, 64)
    assert main_command(["params", "--backbone", "glpn", "--method", "onelora"]) == 0


def main_command(arguments):
    with pytest.raises(SystemExit) as done:
        onelora(arguments)
    return done.value.code


def test_data_in_a_table(workplace):
    with open("labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class", "split"])
        for number in range(8):
            Image.new("RGB", (20, 24), (30 * number, 0, 0)).save(f"{number}.png")
            writer.writerow([f"{number}.png", ["cat", "dog"][number % 2], "train" if number < 6 else "test"])
    names = run(blocks_with("docs/extending.md", "def read_table"))
    assert len(names["images"]) == 6 and names["images"].class_names == ["cat", "dog"]
    assert (workplace / "output/table/config.yaml").exists()


def test_a_dataset_of_ones_own():
    names = run(blocks_with("docs/extending.md", "class Shapes"))
    shapes, ref = names["Shapes"](), names["SampleRef"]
    areas = [shapes[ref(1, seed)]["image"].sum().item() for seed in (7, 7, *range(8))]
    assert areas[0] == areas[1] and len(set(areas)) > 2
    assert shapes[ref(1, 7)]["image"].shape == (3, 32, 32)


def test_a_method_of_peft(capsys, monkeypatch):
    run(blocks_with("docs/extending.md", "rslora"))
    monkeypatch.chdir(ROOT)
    from train_scripts.train_classification import main

    with pytest.raises(SystemExit) as done:
        main(["--method", "rslora", "--rank", "4", "--dry_run"])
    assert done.value.code == 0 and "rslora" in capsys.readouterr().out


def test_a_method_of_ones_own(workplace):
    run(blocks_with("docs/extending.md", "class InScaleLayer", "class InScaleModel"))
    model, x = apply_method(tiny_vit(), "inscale", Adaptation(LINEARS)), torch.randn(3, 3, 16, 16)
    plain = outputs(model, x)
    assert torch.equal(plain, outputs(tiny_vit(), x))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    adapted = outputs(model, x)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    mixed = model(x, adapter_names=["default", "__base__", "default"])
    assert torch.allclose(mixed, torch.stack([adapted[0], plain[1], adapted[2]]), atol=1e-5)
    model.save_pretrained("mine")
    loaded = PeftModel.from_pretrained(tiny_vit(), "mine")
    assert torch.equal(outputs(loaded, x), adapted)
    assert torch.allclose(outputs(loaded.merge_and_unload(), x), adapted, atol=1e-5)


def test_every_block_is_run_or_marked():
    counts = Counter(block.page.name for block in PYTHON if not block.needs)
    assert counts == {"README.md": 1, "index.md": 1, "adapters.md": 2, "extending.md": 7}, "run the new block, too"
