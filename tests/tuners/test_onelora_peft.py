"""1LoRA through PEFT's own entry points, on a small network; the hosts' real classes are in test_methods.py."""

import copy
import json
import warnings

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import nn

from onelora_vision import InputError, OneLoraConfig
from onelora_vision.tuners.onelora import OneLoraLayer
from onelora_vision.tuners.whole import WholeModule

ALL = {"use_sum": True, "use_bias": True, "use_scale": True}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 12)
        self.out = nn.Linear(12, 8, bias=False)

    def forward(self, x):
        return x + self.out(torch.tanh(self.fc(self.norm(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(8)
        self.conv = nn.Conv1d(3, 3, 1)
        self.head = nn.Linear(8, 4)
        self.over_head = nn.Linear(4, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.over_head(self.head(self.norm(self.conv(x))))


TARGETS = r"blocks\.\d\.(fc|out)"


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return Net().to(dtype).eval()


def config(**kwargs):
    return OneLoraConfig(**{"target_modules": TARGETS, "init_weights": False, **kwargs})


def adapted(dtype=torch.float32, **kwargs):
    model = get_peft_model(net(dtype), config(**kwargs)).eval()
    return model


@pytest.fixture
def x():
    return torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("compression", "mean"),
        ("compression_seed", -1),
        ("compression_seed", 0.5),
        ("compression_rank", 0),
        ("compression_rank", 257),
        ("compression_rank", True),
        ("use_sum", "yes"),
        ("use_bias", 2),
        ("use_scale", None),
        ("init_weights", "no"),
        ("target_modules", 3),
        ("target_modules", [1]),
        ("target_modules", ""),
        ("modules_to_save", "head"),
        ("exclude_modules", 1.0),
        ("layers_to_transform", "0"),
        ("layers_to_transform", [-1]),
        ("layers_pattern", "blocks"),
    ],
)
def test_wrong_values_name_field_and_value(field, value):
    with pytest.raises(ValueError, match=field) as error:
        OneLoraConfig(**{"target_modules": ["fc"], field: value})
    assert repr(value) in str(error.value) and "\n" not in str(error.value)


def test_a_config_must_train_something():
    with pytest.raises(InputError, match="train nothing"):
        OneLoraConfig(use_sum=False)
    with pytest.raises(InputError, match="target_modules"):
        OneLoraConfig(use_sum=False, modules_to_save=["head"], target_modules=["fc"])
    with pytest.raises(InputError, match="target_modules is missing"):
        get_peft_model(net(), OneLoraConfig())


def test_config_survives_json(tmp_path):
    first = config(modules_to_save=["head"], compression="random", compression_seed=7, **ALL)
    first.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "ONELORA"
    assert OneLoraConfig.from_pretrained(tmp_path) == first


def adapted_names(model):
    return {name.removeprefix("base_model.model.") for name, m in model.named_modules() if isinstance(m, OneLoraLayer)}


FOUR = {f"blocks.{i}.{name}" for i in (0, 1) for name in ("fc", "out")}


@pytest.mark.parametrize(
    ("kwargs", "names"),
    [
        ({"target_modules": ["fc", "out"]}, FOUR),
        ({"target_modules": ["blocks.0.fc"]}, {"blocks.0.fc"}),
        ({"target_modules": "all-linear"}, FOUR | {"head", "over_head"}),
        ({"target_modules": "all-linear", "exclude_modules": ["head", "over_head"]}, FOUR),
        ({"target_modules": "all-linear", "modules_to_save": ["head"]}, FOUR | {"over_head"}),
        (
            {"target_modules": ["fc", "out"], "layers_to_transform": 1, "layers_pattern": ["blocks"]},
            {"blocks.1.fc", "blocks.1.out"},
        ),
        ({"target_modules": ["fc"], "layers_to_transform": [0], "layers_pattern": "blocks"}, {"blocks.0.fc"}),
    ],
)
def test_target_modules(kwargs, names):
    assert adapted_names(adapted(**kwargs)) == names


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["fc", "ouut"], "ouut.*did you mean"),
        (r"layers\..*", "no module matches"),
        (["conv", "fc"], "only Linear.*conv.*Conv1d"),
        (r"blocks\.0.*", "only Linear.*blocks.0.norm"),
    ],
)
def test_targets_that_do_not_fit_are_named_and_nothing_is_changed(targets, message):
    model = net()
    with pytest.raises(InputError, match=message):
        get_peft_model(model, config(target_modules=targets))
    assert not any(isinstance(m, OneLoraLayer) for m in model.modules())


def wrapped(model):
    return {
        n.removeprefix("base_model.model.") for n, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["norm"], {"norm"}),  # not blocks.0.norm: there is a module of that very name
        (["head"], {"head"}),  # not over_head, which PEFT would take, too
        (["blocks.1.norm"], {"blocks.1.norm"}),
        (["head", "norm", "blocks.0.norm"], {"head", "norm", "blocks.0.norm"}),
    ],
)
def test_modules_to_save_are_taken_exactly(names, expected, tmp_path, x):
    model = adapted(modules_to_save=names)
    assert wrapped(model) == expected
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(net(), tmp_path)
    assert wrapped(loaded) == expected
    assert torch.equal(loaded(x), model(x))


def test_modules_to_save_by_the_end_of_a_name():
    class Wrap(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

    model = get_peft_model(Wrap(), config(target_modules=["fc"], modules_to_save=["head"]))
    assert wrapped(model) == {"inner.head"}
    with pytest.raises(InputError, match=r"modules_to_save 'heed'.*did you mean"):
        adapted(modules_to_save=["heed"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vectors_are_fp32_on_a_half_precision_base_by_every_way_in(dtype, x):
    by_injection = inject_adapter_in_model(config(**ALL, modules_to_save=["head"]), net(dtype))
    by_peft = adapted(dtype, **ALL, modules_to_save=["head"])
    cast_later = adapted(**ALL).to(dtype)
    for model in (by_injection, by_peft, cast_later):
        trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
        assert len(trained) >= 12 and set(trained.values()) == {torch.float32}
        y = model(x.to(dtype))
        assert y.dtype == dtype
        y.float().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("kwargs", [{}, ALL, {"use_sum": False, "use_bias": True}, {"compression": "random"}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_merge_equals_forward_and_unmerge_restores_every_bit(dtype, tolerance, kwargs, x):
    model, x = adapted(dtype, **kwargs), x.to(dtype)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    expected = model(x)
    model.merge_adapter(safe_merge=True)
    layer = model.get_submodule("base_model.model.blocks.0.out")
    assert layer.merged and (layer.base_layer.bias is not None) == kwargs.get("use_bias", False)
    torch.testing.assert_close(model(x), expected, rtol=tolerance, atol=tolerance)
    model.unmerge_adapter()
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert torch.equal(model(x), expected)


def test_a_merged_model_can_be_copied_cast_and_unmerged(x):
    model = adapted(**ALL)
    expected = model(x)
    model.merge_adapter()
    clone = copy.deepcopy(model)
    clone.unmerge_adapter()
    assert torch.equal(clone(x), expected)
    assert model.get_submodule("base_model.model.blocks.0.fc").merged
    model.double().unmerge_adapter()
    assert {p.dtype for n, p in model.named_parameters() if "base_layer" in n} == {torch.float64}


def test_merging_one_more_adapter_composes_and_disabling_unmerges(x):
    model = adapted(**ALL)
    model.add_adapter("second", config(**ALL))
    base = net()(x)
    model.base_model.set_adapter(["default", "second"])
    expected = model(x)
    model.merge_adapter(["second"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_adapter(["default"])
    torch.testing.assert_close(model(x), expected)
    with model.disable_adapter():
        assert torch.equal(model(x), base)


def test_safe_merge_refuses_nan_and_names_the_layer():
    model = adapted()
    before = net().state_dict()["blocks.1.fc.weight"]
    layer = model.get_submodule("base_model.model.blocks.1.fc")
    layer.onelora_b["default"].data[3] = torch.nan
    with pytest.raises(InputError, match=r"blocks\.1\.fc.*NaN"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before) and not layer.merged


def test_unload_and_merge_and_unload(x):
    model = adapted(**ALL)
    expected = model(x)
    merged = copy.deepcopy(model).merge_and_unload(safe_merge=True)
    assert not any(isinstance(m, OneLoraLayer) for m in merged.modules())
    assert isinstance(merged.blocks[0].out, nn.Linear) and merged.blocks[0].out.bias is not None
    torch.testing.assert_close(merged(x), expected)
    model.merge_adapter()
    assert torch.equal(model.unload()(x), net()(x))  # also from the merged state


def resave(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("base_model.model.blocks.1.fc.onelora_b"), r"lacks .*blocks\.1\.fc\.onelora_b"),
        (
            lambda t: t.update({"base_model.model.blocks.7.fc.onelora_b": torch.zeros(12)}),
            r"no place for .*blocks\.7\.fc",
        ),
        (
            lambda t: [t.update({k.replace("blocks", "layers"): t.pop(k)}) for k in list(t)],
            r"lacks .*no place for .*layers",
        ),
        (lambda t: t.update({"base_model.model.head.weight": torch.zeros(4, 8)}), r"no place for .*head"),
    ],
)
def test_an_adapter_file_that_matches_partly_is_refused(change, message, tmp_path):
    adapted().save_pretrained(tmp_path)
    resave(tmp_path, change)
    with pytest.raises(InputError, match=message):
        PeftModel.from_pretrained(net(), tmp_path)
    with pytest.raises(InputError, match=message):
        adapted().load_adapter(tmp_path, "second")
    injected = inject_adapter_in_model(config(), net())
    with pytest.raises(InputError, match=message):
        set_peft_model_state_dict(injected, load_file(tmp_path / "adapter_model.safetensors"))


def test_an_adapter_file_without_its_head_is_refused(tmp_path):
    adapted(modules_to_save=["head"]).save_pretrained(tmp_path)
    resave(tmp_path, lambda t: t.pop("base_model.model.head.weight"))
    with pytest.raises(KeyError, match=r"head\.weight"):
        PeftModel.from_pretrained(net(), tmp_path)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_by_every_way_in(low_cpu_mem_usage, dtype, tmp_path, x):
    model, x = adapted(dtype, **ALL, compression="random", compression_seed=3, modules_to_save=["head"]), x.to(dtype)
    model.save_pretrained(tmp_path)
    expected = model(x)
    loaded = PeftModel.from_pretrained(net(dtype), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded(x), expected)
    loaded.load_adapter(tmp_path, "second", low_cpu_mem_usage=low_cpu_mem_usage)
    loaded.set_adapter("second")
    assert torch.equal(loaded(x), expected)
    injected = inject_adapter_in_model(
        config(**ALL, compression="random", compression_seed=3, modules_to_save=["head"]), net(dtype)
    )
    state = get_peft_model_state_dict(model)
    set_peft_model_state_dict(injected, {key.removeprefix("base_model.model."): t for key, t in state.items()})
    assert torch.equal(injected.eval()(x), expected)


def test_random_compression_is_rebuilt_and_not_saved(tmp_path, x):
    model = adapted(compression="random", compression_seed=3)
    model.save_pretrained(tmp_path)
    assert {key.rpartition(".")[2] for key in load_file(tmp_path / "adapter_model.safetensors")} == {"onelora_b"}
    assert not torch.allclose(model(x), adapted()(x))
    assert torch.equal(
        model.to(torch.bfloat16).float()(x), PeftModel.from_pretrained(net().bfloat16().float(), tmp_path)(x)
    )


@pytest.mark.parametrize("compression", ["singular", "subspace"])
def test_compression_by_the_frozen_weight_is_rebuilt(compression, tmp_path, x):
    model = adapted(compression=compression)
    model.save_pretrained(tmp_path)
    assert {key.rpartition(".")[2] for key in load_file(tmp_path / "adapter_model.safetensors")} == {"onelora_b"}
    expected = model(x)
    assert not torch.allclose(expected, adapted()(x))
    assert torch.equal(PeftModel.from_pretrained(net(), tmp_path)(x), expected)
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected)
    model.load_adapter(tmp_path, "again")  # the weight that is merged now is not the frozen one
    model.unmerge_adapter()
    model.set_adapter("again")
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("compression", ["singular", "subspace"])
def test_compression_by_a_quantised_weight_is_refused(compression):
    quantised = net()
    quantised.blocks[0].fc.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        InputError,
        match=rf"blocks\.0\.fc: compression='{compression}' reads the weight, which is quantised.*int8.*'sum'",
    ):
        get_peft_model(quantised, config(compression=compression))


@pytest.mark.parametrize("compression", ["random", "singular", "subspace"])
def test_adapters_with_different_compressions_work_together(x, compression):
    model = adapted()
    model.add_adapter("random", config(compression=compression, compression_seed=3, **ALL))
    model.base_model.set_adapter(["default", "random"])
    expected = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), expected)
    model.unmerge_adapter()
    single = []
    for name in ("default", "random"):
        model.set_adapter(name)
        single.append(model(x))
    mixed = model(x, adapter_names=["default", "random", "__base__", "random", "default"])
    for i, rows in ((0, single[0]), (1, single[1]), (2, net()(x)), (3, single[1]), (4, single[0])):
        torch.testing.assert_close(mixed[i], rows[i])


def test_scales_weight_an_adapter_as_documented(x):
    model, layer = adapted(**ALL), "base_model.model.blocks.0.fc"
    layer = model.get_submodule(layer)
    h = torch.randn(5, 8)
    b, beta, gamma, _ = layer.vectors("default")
    layer.set_scale("default", 0.5)
    expected = (1 + 0.5 * (gamma - 1)) * (layer.base_layer(h) + 0.5 * beta) + 0.5 * b * h.sum(-1, keepdim=True)
    torch.testing.assert_close(layer(h), expected)
    torch.testing.assert_close(
        layer.get_delta_weight("default"),
        (1 + 0.5 * (gamma - 1))[:, None] * layer.weight + 0.5 * b[:, None] - layer.weight,
    )
    layer.scale_layer(4.0)
    assert layer.scaling == {"default": 2.0}
    layer.unscale_layer(2.0)
    assert layer.scaling == {"default": 1.0}
    layer.scale_layer(3.0)
    layer.unscale_layer()
    assert layer.scaling == {"default": 1.0} and layer.r == {"default": 1}
    layer.set_scale("nobody", 3.0)
    assert layer.scaling == {"default": 1.0}


@pytest.mark.parametrize(("compression", "rank"), [("random", 1), ("subspace", 4)])
def test_conversion_to_lora_is_exact_for_b_and_refused_for_the_rest(compression, rank, tmp_path, x):
    convert_to_lora = pytest.importorskip("peft.tuners.lora.conversion", reason="PEFT 0.18 cannot").convert_to_lora
    model = adapted(compression=compression, compression_rank=4)
    lora_config, state = convert_to_lora(model, rank=rank)
    assert lora_config.r == rank
    lora = get_peft_model(net(), lora_config)
    set_peft_model_state_dict(lora, state)
    torch.testing.assert_close(lora.eval()(x), model(x))
    for kwargs in ({"use_bias": True}, {"use_scale": True}):
        with pytest.raises(TypeError, match="do not support LoRA conversion"):
            convert_to_lora(adapted(**kwargs), rank=1)
        assert not adapted(**kwargs).supports_lora_conversion()
    assert model.supports_lora_conversion()


def test_mixed_batches_refuse_what_they_cannot_do(x):
    model = adapted()
    with pytest.raises(InputError, match=r"defautl.*did you mean 'default'"):
        model(x, adapter_names=["defautl"] * 5)
    with pytest.raises(InputError, match=r"blocks\.0\.fc: 2 adapter_names for an input of 5"):
        model(x, adapter_names=["default"] * 2)
    model.merge_adapter()
    with pytest.raises(InputError, match="unmerge"):
        model(x, adapter_names=["default"] * 5)


def test_mixed_batches_train_and_reach_whole_modules_of_any_kind(x):
    model = adapted(modules_to_save=["norm", "head"])
    model.add_adapter("second", config(modules_to_save=["head"]))
    with torch.no_grad():
        model.get_submodule("base_model.model.norm").modules_to_save["default"].weight.mul_(2)
        model.get_submodule("base_model.model.head").modules_to_save["second"].weight.mul_(3)
    alone = {}
    for name in ("default", "second"):
        model.set_adapter(name)
        alone[name] = model(x)
    names = ["default", "second", "__base__", "second", "default"]
    model.set_requires_grad(["default", "second"])
    mixed = model(x, adapter_names=names)
    alone["__base__"] = net()(x)
    for i, name in enumerate(names):
        torch.testing.assert_close(mixed[i], alone[name][i])
    mixed.sum().backward()
    layer = model.get_submodule("base_model.model.blocks.0.fc")
    assert all(layer.onelora_b[name].grad.abs().sum() > 0 for name in ("default", "second"))


def test_deleting_adapters_leaves_the_others_and_then_the_base(x):
    model = adapted(modules_to_save=["head"])
    model.add_adapter("second", config(**ALL, compression="random"))
    model.set_adapter("second")
    expected = model(x)
    model.delete_adapter("default")
    assert torch.equal(model(x), expected)
    assert not [key for key in model.state_dict() if ".default" in key]


def test_hooks_on_the_base_layer_are_honoured(x):
    model = adapted(**ALL)
    seen = []
    layer = model.get_submodule("base_model.model.blocks.0.fc")
    expected = model(x)
    layer.base_layer.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    torch.testing.assert_close(model(x), expected)
    assert seen == [torch.Size([5, 3, 12])]


def test_adapters_do_not_share_state_and_train_alone(x):
    model = adapted()
    model.add_adapter("second", config())
    model.set_adapter("second")
    model(x).sum().backward()
    grads = {name: p.grad is not None for name, p in model.named_parameters() if "onelora_" in name}
    assert grads and all(has == ("second" in name) for name, has in grads.items())


def test_a_whole_half_precision_module_trains_in_fp32(x):
    model = adapted(torch.bfloat16, modules_to_save=["head"])
    wrapper = model.get_submodule("base_model.model.head")
    assert isinstance(wrapper, WholeModule) and wrapper.original_module.weight.dtype == torch.bfloat16
    head = wrapper.modules_to_save["default"]
    assert head.weight.dtype == torch.float32
    assert model(x.bfloat16()).dtype == torch.bfloat16
    with torch.no_grad():
        head.weight += 1e-4  # less than bf16 can hold
    assert not torch.equal(head.weight, head.weight.bfloat16().float())


def test_full_graph_under_compile(x):
    model = adapted(**ALL)
    torch._dynamo.reset()
    compiled = torch.compile(model.get_base_model(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


def test_meta_device_needs_no_memory():
    with torch.device("meta"):
        model = get_peft_model(Net(), config(**ALL, compression="random"))
    assert all(p.is_meta for p in model.parameters())
