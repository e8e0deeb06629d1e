import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_hosts import save_base, tiny_base, trained_on

from onelora_vision.adapters import export as module
from onelora_vision.adapters.bases import load_base
from onelora_vision.adapters.export import export
from onelora_vision.adapters.file import read_adapter, write_adapter
from onelora_vision.adapters.importing import import_adapter
from onelora_vision.backbones.dit import DiTBase
from onelora_vision.errors import InputError

pytestmark = pytest.mark.usefixtures("forked_reloads")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The hosts' tiny bases on disk, each saved once."""
    folder, made = tmp_path_factory.mktemp("bases"), {}

    def get(host):
        if host not in made:
            made[host] = save_base(host, folder / host)
        return made[host]

    return get


def same_tensors(first, second):
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], atol=1e-6, rtol=1e-5, msg=key)


@pytest.mark.parametrize(
    ("host", "method", "options"),
    [
        ("timm", "sum+bias+norms", {}),
        ("timm", "onelora", {"compression": "random"}),
        ("timm", "onelora", {"compression": "singular"}),
        ("timm", "sum+bias", {"compression": "subspace", "compression_rank": 4}),
        ("transformers", "onelora", {"extra": {"max_depth": 20}}),
        ("diffusers", "sum+bias", {"extra": {"fuse_qkv": True}}),
    ],
)
def test_peft_loads_the_lora_without_us_and_it_comes_back(bases, host, method, options, tmp_path):
    adapter = trained_on(bases(host), host, tmp_path / "a", method, **options)
    result = export(adapter.path, "peft-lora", tmp_path / "lora")
    assert result["error"] < 1e-5 and result["effect"] > 1e-3
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    rank = options.get("compression_rank", 1)
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", rank, rank)
    if "compression" in options:
        with pytest.raises(InputError, match=r"not 1LoRA: .*(A varies by|rank 4)"):
            import_adapter(tmp_path / "lora")
        return
    again = import_adapter(tmp_path / "lora")
    same_tensors(again.tensors, adapter.tensors)
    assert again.info.class_names == adapter.info.class_names
    assert (again.info.method, again.info.base_fingerprint) == (method, adapter.info.base_fingerprint)


def test_a_velocity_base_stays_one_when_it_is_merged_and_its_lora_comes_back(sit_folder, tmp_path):
    extra = {"objective": "velocity, image at t=1"}
    adapter = trained_on(str(sit_folder), "diffusers", tmp_path / "a", extra=extra)
    result = export(adapter.path, "merged", tmp_path / "merged")
    assert result["error"] < 1e-5 and result["effect"] > 1e-3
    assert str(DiTBase.load(tmp_path / "merged").objective) == extra["objective"]
    export(adapter.path, "peft-lora", tmp_path / "lora")
    again = import_adapter(tmp_path / "lora")
    same_tensors(again.tensors, adapter.tensors)
    assert again.info.extra["objective"] == extra["objective"]


def test_diffusers_loads_the_lora_and_the_label_table_beside_it(bases, tmp_path):
    adapter = trained_on(bases("diffusers"), "diffusers", tmp_path / "a", "sum+bias")
    result = export(adapter.path, "diffusers", tmp_path / "lora")
    assert result["error"] < 1e-5 and result["carried"] == ["beta", "conditioning.class_embedder.embedding_table"]
    with safe_open(tmp_path / "lora" / "pytorch_lora_weights.safetensors", "pt") as file:
        header = file.metadata()
    assert header["format"] == "pt" and json.loads(header["lora_adapter_metadata"])["transformer.lora_alpha"] == 1
    table = load_file(tmp_path / "lora" / "modules.safetensors")
    assert len(table) == 2 and all(len(value) == 4 for value in table.values())  # two blocks; the base's 3 + 1 rows
    same_tensors(import_adapter(tmp_path / "lora").tensors, adapter.tensors)


@pytest.mark.parametrize("fused", [False, True])
def test_comfy_keys_are_the_original_dits_with_explicit_alphas(bases, fused, tmp_path):
    extra = {"fuse_qkv": fused}
    adapter = trained_on(bases("diffusers"), "diffusers", tmp_path / "a", "sum+bias", extra=extra)
    result = export(adapter.path, "comfy", tmp_path / "lora")
    assert result["error"] < 1e-5
    file = load_file(tmp_path / "lora" / "lora.safetensors")
    up = file["lora_unet_blocks_0_attn_qkv.lora_up.weight"]
    assert up.shape == (72, 1) and (file["lora_unet_blocks_0_attn_qkv.lora_down.weight"] == 1).all()
    assert file["lora_unet_blocks_0_attn_qkv.alpha"].item() == 1.0
    assert "lora_unet_final_layer_linear.diff_b" in file
    same_tensors(import_adapter(tmp_path / "lora").tensors, adapter.tensors)


@pytest.mark.parametrize(
    ("host", "method", "dtype"),
    [
        ("timm", "difffit", "fp32"),
        ("transformers", "lora", "bf16"),
        ("diffusers", "sum+bias+scale", "fp32"),
    ],
)
def test_merged_models_load_as_their_library_saves_them(bases, host, method, dtype, tmp_path):
    adapter = trained_on(bases(host), host, tmp_path / "a", method, size=0.2)
    result = export(adapter.path, "merged", tmp_path / "m", dtype=dtype, max_shard_size="20KB")
    assert result["error"] < (1e-5 if dtype == "fp32" else 0.05) < result["effect"]
    if host == "timm":
        assert json.loads((tmp_path / "m" / "config.json").read_text())["label_names"] == ["x", "y"]
    else:
        assert len(list((tmp_path / "m").rglob("*-of-*.safetensors"))) > 1


@pytest.mark.parametrize(
    ("host", "method", "dtype"),
    [
        ("timm", "sum+bias", "fp32"),
        pytest.param("timm", "lora", "fp16", marks=pytest.mark.slow),
        pytest.param("transformers", "onelora", "fp32", marks=pytest.mark.slow),
        pytest.param("diffusers", "onelora", "fp32", marks=pytest.mark.slow),
        pytest.param("diffusers", "sum+bias", "fp16", marks=pytest.mark.slow),
    ],
)
def test_onnx_computes_the_adapted_model_for_any_batch_and_size_of_depth(
    bases, host, method, dtype, tmp_path, monkeypatch
):
    """`export` itself compares three images, one, and for depth a rectangle with the network's outputs."""
    from onelora_vision.adapters.formats import onnx as format

    onnx = pytest.importorskip("onnx")
    if dtype == "fp16":  # as if the weights were many
        monkeypatch.setattr(format, "_LARGEST", 0)
    adapter = trained_on(bases(host), host, tmp_path / "a", method, size=0.2)
    result = export(adapter.path, "onnx", tmp_path / "m", dtype=dtype)
    assert result["error"] < (1e-5 if dtype == "fp32" else 1e-2) < result["effect"]
    model = onnx.load(tmp_path / "m" / "model.onnx")
    assert (tmp_path / "m" / "model.onnx.data").exists() == (dtype == "fp16")
    axes = [[axis.dim_param or axis.dim_value for axis in v.type.tensor_type.shape.dim] for v in model.graph.input]
    images = {
        "timm": [3, 32, 32],
        "diffusers": [4, 8, 8],
        "transformers": [3, "14*rows", "14*columns"],
    }[host]
    assert axes[0] == ["batch", *images] and all(rest == ["batch"] for rest in axes[1:])
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["task"] == adapter.info.task and facts["method"] == method
    if host == "timm":
        assert json.loads(facts["class_names"]) == ["x", "y"]
        assert json.loads(facts["preprocessing"])["input_size"] == [3, 32, 32]


def test_what_onnx_cannot_be_made_of_is_one_line(bases, tmp_path, monkeypatch):
    adapter = trained_on(bases("timm"), "timm", tmp_path / "a")
    with pytest.raises(InputError, match="--dtype bf16: --to onnx writes fp32 or fp16"):
        export(adapter.path, "onnx", tmp_path / "m", dtype="bf16")

    def fails(*args, **options):
        raise RuntimeError("no such operation\nand more") from ValueError("aten::odd is unknown\nand more")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(InputError, match=r"cannot export this network to ONNX .*aten::odd is unknown") as caught:
        export(adapter.path, "onnx", tmp_path / "m")
    assert "\n" not in str(caught.value) and not (tmp_path / "m").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--to onnx needs the package onnx: pip install 'onelora_vision\[onnx\]'"):
        export(adapter.path, "onnx", tmp_path / "m")


def test_sizes_stay_free_while_a_graph_is_made_and_integers_are_integers():
    from transformers.models.depth_anything import modeling_depth_anything

    from onelora_vision.adapters.formats.onnx import symbolic_sizes

    model = tiny_base("transformers").model
    with symbolic_sizes(model):
        assert modeling_depth_anything.int("7") == 7 and isinstance(3, modeling_depth_anything.int)
        assert not isinstance(3.0, modeling_depth_anything.int)
    assert not hasattr(modeling_depth_anything, "int")


def test_lora_of_any_rank_goes_to_comfy(bases, tmp_path):
    adapter = trained_on(bases("diffusers"), "diffusers", tmp_path / "a", "lora", rank=2, lora_alpha=6)
    assert export(adapter.path, "comfy", tmp_path / "lora", dtype="fp16")["error"] < 1e-2
    file = load_file(tmp_path / "lora" / "lora.safetensors")
    assert file["lora_unet_blocks_0_attn_qkv.lora_down.weight"].shape == (6, 24)
    with pytest.raises(InputError, match=r"not 1LoRA: .*rank"):
        import_adapter(tmp_path / "lora")


def test_what_a_format_cannot_hold_is_refused_and_leaves_nothing(bases, tmp_path):
    vit = trained_on(bases("timm"), "timm", tmp_path / "v", "difffit")
    dit = trained_on(bases("diffusers"), "diffusers", tmp_path / "d", class_names=tuple("abcdefg"))
    dora = trained_on(bases("timm"), "timm", tmp_path / "o", "dora")
    table = trained_on(bases("diffusers"), "diffusers", tmp_path / "t", "head")
    for adapter, to, message in (
        (vit, "peft-lora", r"cannot hold the gamma of blocks.0.attn.proj, .*--to merged"),
        (vit, "comfy", "is for DiT"),
        (dit, "diffusers", "7 classes do not fit into the base's label table of 3"),
        (dora, "peft-lora", "not a plain LoRA"),
        (table, "diffusers", "changes no linear layer"),
        (vit, "onx", "no such format; did you mean 'onnx'"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            export(adapter.path, to, tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no such type"):
        export(dit.path, "merged", tmp_path / "out", dtype="fp8")
    vit.info.base_fingerprint = "0"
    write_adapter(vit.config, vit.tensors, vit.info, tmp_path / "w")
    with pytest.raises(InputError, match="another base"):
        export(tmp_path / "w", "merged", tmp_path / "out")


@pytest.mark.parametrize("method", ["onelora", "lora"])
def test_a_base_whose_weights_are_computed_is_not_merged(bases, method, tmp_path, monkeypatch):
    def with_computed_weight(*args):
        base = load_base(*args)
        torch.nn.utils.parametrizations.weight_norm(base.model.blocks[1].mlp.fc1)
        return base

    adapter = trained_on(bases("timm"), "timm", tmp_path / "a", method)
    monkeypatch.setattr(module, "load_base", with_computed_weight)
    monkeypatch.setattr(module, "require_same_base", lambda *_: None)
    with pytest.raises(InputError, match=r"cannot merge into blocks\.1\.mlp\.fc1: the weight is computed"):
        export(adapter.path, "merged", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_export_that_does_not_give_the_same_outputs_is_refused(bases, tmp_path, monkeypatch):
    from onelora_vision.adapters.formats import peft_lora

    adapter = trained_on(bases("timm"), "timm", tmp_path / "a")
    good = peft_lora.lora_config

    def eight_times_too_strong(changes):
        config = good(changes)
        config.lora_alpha = 8
        return config

    monkeypatch.setattr(peft_lora, "lora_config", eight_times_too_strong)
    with pytest.raises(InputError, match="its outputs differ by"):
        export(adapter.path, "peft-lora", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [
        ("beit_base_patch16_224", {"img_size": 32, "depth": 2, "num_heads": 2}, "blocks.0.attn.qkv"),
        pytest.param(
            "swinv2_tiny_window8_256",
            {"img_size": 64, "window_size": 4, "depths": (1, 1), "num_heads": (2, 2)},
            "layers.0.blocks.0.attn.qkv",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "eva_giant_patch14_224",
            {"img_size": 28, "depth": 2, "num_heads": 2},
            "blocks.0.attn.qkv",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_base_that_stock_peft_cannot_adapt_is_named_with_its_reason(name, options, layer, tmp_path):
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, embed_dim=24, num_classes=3, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # behind a LayerNorm as it starts, inputs sum to 0
            parameter.add_(0.3 * torch.randn_like(parameter))
    timm.models.save_for_hf(model, tmp_path / "base", safe_serialization=True)
    adapter = trained_on(str(tmp_path / "base"), "timm", tmp_path / "a")
    for to in ("peft-lora", "peft-miss"):
        with pytest.raises(InputError, match=f"reads the weight of {layer}, .*does not call.*--to merged") as caught:
            export(adapter.path, to, tmp_path / "out")
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
    assert export(adapter.path, "merged", tmp_path / "out")["error"] < 1e-5


def test_import_says_what_is_missing(bases, tmp_path):
    adapter = trained_on(bases("timm"), "timm", tmp_path / "a")
    with pytest.raises(InputError, match="is ONELORA; can be imported: LORA, MISS"):
        import_adapter(adapter.path)
    with pytest.raises(InputError, match="no such task; did you mean 'depth'"):
        import_adapter(adapter.path, task="dept")
    with pytest.raises(InputError, match="0 LoRA files"):
        import_adapter(tmp_path)
    read_adapter(adapter.path)
