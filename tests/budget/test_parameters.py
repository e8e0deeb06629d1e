"""The 1LoRA paper's parameter counts (arXiv 2503.08333), exactly; docs/paper.md says where the paper's own print differs."""

import json
import re
from pathlib import Path

import pytest

from onelora_vision import embedded
from onelora_vision.backbones.catalogue import NAMED, describe
from onelora_vision.backbones.dit import DiTBase
from onelora_vision.backbones.vit import ViTBase
from onelora_vision.budget.parameters import count
from onelora_vision.cli import main
from onelora_vision.errors import InputError
from onelora_vision.methods.names import METHODS

DOCS = Path(__file__).parents[2] / "docs"

# backbone, options -> {method: values trained}; without the head, which the paper leaves out for classification
PAPER = {
    ("depth-anything-l", True, None): {
        "onelora": 221_184,
        "lora": 393_216,
        "vera": 221_280,
        "dora": 614_400,
        "mora1": 220_056,
        "mora6": 217_440,
        "bitfit": 221_184,
        "bias+norms": 321_536,
        "difffit": 542_720,
        "norms": 100_352,
    },
    ("vit-b-16", False, 10): {
        "onelora": 82_944,
        "lora": 165_888,
        "vera": 83_016,
        "dora": 248_832,
        "mora1": 83_340,
        "mora6": 82_032,
        "bitfit": 82_944,
        "difffit": 204_288,
        "norms": 38_400,
    },
    ("dit-xl-2", True, 101): {
        "onelora": 603_680,
        "lora": 864_032,
        "vera": 603_822,
        "mora1": 604_412,
        "mora6": 596_516,
        "bitfit": 603_680,
        "difffit": 1_089_856,
    },
    ("dit-xl-2", False, 101): {"onelora": 603_680, "lora": 928_544},
    ("llama-2-7b", False, None): {
        "onelora": 1_359_872,
        "lora": 2_498_560,
        "vera": 1_360_096,
        "mora1": 1_360_960,
        "mora6": 1_347_584,
        "bitfit": 1_359_872,
    },
    ("llama-2-13b", False, None): {"onelora": 2_129_920, "lora": 3_911_680, "bitfit": 2_129_920},
}
LAYERS = {"depth-anything-l": 96, "vit-b-16": 72, "llama-2-7b": 224, "llama-2-13b": 280}


@pytest.mark.parametrize(
    ("backbone", "fused", "classes", "method", "values"),
    [(*place, method, values) for place, methods in PAPER.items() for method, values in methods.items()],
)
def test_counts_of_the_paper(backbone, fused, classes, method, values):
    row = count(backbone, method, num_classes=classes, fuse_qkv=fused)
    with_table = backbone.startswith("dit")  # the paper counts DiT's class embedding, but no classifier head
    assert row["trainable_parameters" if with_table else "adapter_parameters"] == values
    if backbone in LAYERS and method != "norms":
        assert row["layers"] == LAYERS[backbone]
    assert values * 4 < row["file_bytes"] < 4 * row["trainable_parameters"] * 1.1 + 300_000
    assert row["optimizer_bytes"] == 8 * row["trainable_parameters"]


def test_every_number_of_the_table_stands_in_the_documentation():
    text = (DOCS / "paper.md").read_text()
    missing = [n for methods in PAPER.values() for n in methods.values() if f"{n:,}" not in text]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "millions"), [("sit-s-2", 33), ("sit-b-2", 130), ("sit-l-2", 458), ("sit-xl-2", 675), ("repa-xl-2", 675)]
)
def test_sits_published_sizes(name, millions):
    """SiT (arXiv 2401.08740), table 1: the sizes of DiT. REPA's last layer has no second half."""
    total = count(name, "full")["total_parameters"]
    assert round(total / 1e6) == millions
    if name == "repa-xl-2":
        assert total == count("sit-xl-2", "full")["total_parameters"] - 4 * 4 * (1152 + 1)


def test_lora_on_qkv_alone():
    """The paper's LoRA (QKV) rows: 786,432 for 7B and 1,228,800 for 13B."""
    for name, values in (("llama-2-7b", 786_432), ("llama-2-13b", 1_228_800)):
        base = describe(name)
        layers = [n for n in base.adaptation().target_modules if re.search(r"[qkv]_proj$", n)]
        linears = [base.model.get_submodule(n) for n in layers]
        assert sum(linear.in_features + linear.out_features for linear in linears) == values


def test_head_and_full_are_the_bounds():
    head, full = (count("vit-b-16", method, num_classes=100) for method in ("head", "full"))
    assert (head["trainable_parameters"], head["layers"]) == (76_900, 0)
    assert full["trainable_parameters"] == full["total_parameters"] == 85_875_556


def test_command_prints_json_with_the_fixed_fields(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["params", "--backbone", "dit-s-8", "--method", "onelora,lora", "--num_classes", "10", "--json"])
    assert ended.value.code == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["onelora", "lora"]
    assert {
        "backbone", "method", "layers", "trainable_parameters", "adapter_parameters", "file_bytes", "total_parameters",
    } <= rows[0].keys()  # fmt: skip


def test_command_prints_a_table_and_a_plot(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(
            ["params", "--backbone", "vit_tiny_patch16_224", "--num-classes", "10", "--plot", str(tmp_path / "p.png")]
        )
    printed = capsys.readouterr().out
    assert "onelora_norms" in printed and "full" in printed and "%" in printed
    assert (tmp_path / "p.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["params", "--backbone", "dit-xl-3"], "did you mean 'dit-xl-"),
        (["params", "--backbone", "vit-b-16", "--method", "lorra"], "did you mean 'lora'"),
        (["params", "--backbone", "vit-b-16", "--num_classes", "0"], "--num_classes is 0"),
        (["params"], "--backbone"),
        (["parms"], "did you mean 'params'"),
    ],
)
def test_bad_input_of_the_command(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    assert ended.value.code == 2 and captured.out == ""
    assert len(captured.err.splitlines()) == 1 and message in captured.err


def test_folders_are_read_by_their_config(dit_folder, tmp_path):
    assert describe(str(dit_folder), num_classes=3).adaptation().whole_modules
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="'bert'"):
        describe(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 64}')
    assert len(describe(str(tmp_path)).adaptation().target_modules) == 7
    assert "llama-2-13b" in NAMED
    assert describe("embedded/sit").model.num_classes == 36 and describe("embedded/depth").adaptation().target_modules


@pytest.mark.parametrize(("folder", "load"), [(embedded.VIT, ViTBase.load), (embedded.DIT, DiTBase.load)])
def test_a_folder_is_described_as_it_is_loaded(folder, load):
    """A timm folder's own size and depth are in its config's ``model_args``."""
    loaded = load(str(folder)).model
    described = describe(str(folder)).model.state_dict()
    assert {name: t.shape for name, t in described.items()} == {n: t.shape for n, t in loaded.state_dict().items()}


def test_all_methods_are_those_that_train_something(tmp_path, tiny_depth_anything, capsys):
    tiny_depth_anything().save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["params", "--backbone", str(tmp_path), "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and "left out: method head trains nothing" in err
    unknown = {"head", "adamss", "frod", "shira"}  # the last three begin with the weights
    assert [row["method"] for row in json.loads(out)] == [name for name in METHODS if name not in unknown]
    with pytest.raises(SystemExit) as ended:
        main(["params", "--backbone", str(tmp_path), "--method", "head"])
    assert ended.value.code == 2
