"""1LoRA as stock PEFT's MiSS at rank 1, and back."""

import json

import pytest
import torch
from peft import MissConfig, get_peft_model
from safetensors.torch import load_file
from tiny_hosts import example, fresh, save_base, trained_on

from onelora_vision.adapters.algebra import blend
from onelora_vision.adapters.export import export
from onelora_vision.adapters.file import read_adapter
from onelora_vision.adapters.importing import import_adapter
from onelora_vision.adapters.inspection import examine
from onelora_vision.adapters.layout import layout_of
from onelora_vision.adapters.lowrank import low_rank
from onelora_vision.adapters.summary import inspect
from onelora_vision.errors import InputError

pytestmark = pytest.mark.usefixtures("forked_reloads")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("bases"), {}

    def get(host):
        if host not in made:
            made[host] = save_base(host, folder / host)
        return made[host]

    return get


def same_bits(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert first[key].dtype == second[key].dtype and torch.equal(first[key], second[key]), key


@pytest.mark.parametrize(
    ("host", "method", "extra"),
    [
        ("timm", "onelora", {}),
        ("timm", "onelora_norms", {}),
        ("timm", "head", {}),
        ("transformers", "onelora", {"max_depth": 20}),
        ("diffusers", "onelora", {}),
        ("diffusers", "onelora", {"fuse_qkv": True}),
    ],
)
def test_stock_peft_loads_d_values_per_layer_and_they_come_back_bit_for_bit(bases, host, method, extra, tmp_path):
    adapter = trained_on(bases(host), host, tmp_path / "a", method, extra=extra)
    result = export(adapter.path, "peft-miss", tmp_path / "miss")
    assert result["error"] < 1e-5 and result["effect"] > 1e-3
    config = json.loads((tmp_path / "miss" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["init_weights"]) == ("MISS", 1, True)
    blocks = {k: t for k, t in load_file(tmp_path / "miss" / "adapter_model.safetensors").items() if "miss" in k}
    ours = sum(t.numel() for k, t in adapter.tensors.items() if "onelora_b" in k)
    assert sum(t.numel() for t in blocks.values()) == ours and all(len(t) == 1 for t in blocks.values())
    assert inspect(tmp_path / "miss")["peft_type"] == "MISS"
    problems = {finding["check"] for finding in examine(tmp_path / "miss") if finding["level"] == "problem"}
    assert problems == set()  # a table of the base's own size is one of the export's, no problem
    assert "A plain MiSS for the base" in (tmp_path / "miss" / "README.md").read_text()
    again = import_adapter(tmp_path / "miss")
    same_bits(again.tensors, adapter.tensors)
    assert again.info.class_names == adapter.info.class_names
    assert (again.info.method, again.info.base_fingerprint) == (method, adapter.info.base_fingerprint)


def test_half_precision_is_written_on_request(bases, tmp_path):
    adapter = trained_on(bases("timm"), "timm", tmp_path / "a")
    assert export(adapter.path, "peft-miss", tmp_path / "miss", dtype="bf16")["error"] < 5e-2
    blocks = load_file(tmp_path / "miss" / "adapter_model.safetensors")
    assert blocks["base_model.model.blocks.0.mlp.fc2.miss_block"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("sum+bias", {}, r"MiSS cannot hold beta; export with --to peft-lora"),
        ("difffit", {}, r"MiSS cannot hold beta and gamma; export with --to merged"),
        ("onelora", {"compression": "random"}, r"MiSS cannot hold the random compression; export with --to peft-lora"),
        ("mora6", {}, r"MiSS cannot hold MoRA, only 1LoRA; export with --to merged"),
        ("lora", {}, r"MiSS cannot hold LoRA, only 1LoRA; export with --to peft-lora"),
        ("dora", {}, r"MiSS cannot hold LoRA, only 1LoRA; export with --to merged"),
    ],
)
def test_what_miss_cannot_hold_is_one_line_that_names_a_format_that_can(bases, method, options, message, tmp_path):
    adapter = trained_on(bases("timm"), "timm", tmp_path / "a", method, **options)
    with pytest.raises(InputError, match=message) as caught:
        export(adapter.path, "peft-miss", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def stock_miss(folder, **options):
    """A MiSS adapter that PEFT alone made."""
    torch.manual_seed(3)
    config = MissConfig(target_modules=["qkv", "fc2"], modules_to_save=["head"], **options)
    model = get_peft_model(fresh("timm")[0], config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    return model(**example("timm")), model


def test_stock_files_of_rank_1_are_imported(bases, tmp_path):
    expected, model = stock_miss(tmp_path / "miss", r=1, miss_dropout=0.2, init_weights=False)
    about = {"base": bases("timm"), "task": "classification", "class_names": ["a", "b", "c"]}
    adapter = import_adapter(tmp_path / "miss", **about)
    block = model.base_model.model.blocks[1].attn.qkv.miss_block["default"]
    assert torch.equal(adapter.tensors["base_model.model.blocks.1.attn.qkv.onelora_b"], block[0])
    assert adapter.config.modules_to_save == ["head"] and adapter.info.method == "onelora"
    output = adapter.attach(fresh("timm")[0]).eval()(**example("timm"))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 2}, "not 1LoRA: MiSS with r=2, while 1LoRA is MiSS with r=1"),
        ({"r": 1, "init_weights": "mini", "mini_r": 24}, "init_weights = 'mini' is not accepted .only plain MiSS"),
        ({"r": 2, "init_weights": "bat"}, "init_weights = 'bat' is not accepted .only plain MiSS"),
        ({"r": 1, "bias": "all"}, "bias = 'all' is not accepted .the file of a MiSS adapter does not hold biases"),
    ],
)
def test_other_variants_of_miss_are_refused_with_the_reason(bases, options, message, tmp_path):
    stock_miss(tmp_path / "miss", **options)
    with pytest.raises(InputError, match=message):
        import_adapter(tmp_path / "miss", base=bases("timm"), task="classification", class_names=["a", "b", "c"])


@pytest.mark.parametrize("r", [1, 5])  # 5 divides neither width
def test_miss_of_any_rank_is_read_as_peft_computes_it(r, tmp_path):
    expected, model = stock_miss(tmp_path / "miss", r=r)
    adapter = read_adapter(tmp_path / "miss")
    base = fresh("timm")[0]
    changes = low_rank(adapter, layout_of(adapter.config, adapter.tensors), base)
    for name, change in changes.items():
        layer = model.base_model.model.get_submodule(name)
        delta = layer.get_delta_weight_miss("default", layer.get_base_weight().clone()) - layer.get_base_weight()
        torch.testing.assert_close(change.up @ change.down, delta)
    twice = blend([(adapter, 0.5), (adapter, 0.5)])
    output = twice.attach(fresh("timm")[0]).eval()(**example("timm"))
    torch.testing.assert_close(output, expected)


def test_miss_of_different_ranks_has_no_sum(tmp_path):
    for r in (1, 2):
        stock_miss(tmp_path / str(r), r=r)
    with pytest.raises(InputError, match="MiSS adapters with r 1, 2 do not blend"):
        blend([(read_adapter(tmp_path / "1"), 1.0), (read_adapter(tmp_path / "2"), 1.0)])
