"""Every method on every host, by one table of checks; a new row of `METHODS` joins by itself.

PEFT's own methods, of which less can be promised, have theirs in test_peft_methods.py.
"""

import re

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from tiny_hosts import HOSTS, build, close, example, fresh, output, shake
from torch import nn

from onelora_vision.backbones.base import Adaptation
from onelora_vision.errors import InputError
from onelora_vision.methods import names as methods
from onelora_vision.methods.apply import apply_method, head_parameters, saved_parameters, trainable_parameters
from onelora_vision.methods.names import COMBINATIONS, PARTS, find_method
from onelora_vision.tuners import probe_gradients

METHODS = [name for name, row in methods.METHODS.items() if row.peft is None]
OURS = [name for name in METHODS if name not in ("lora", "dora", "vera")]
ABLATION = [name for name in COMBINATIONS if find_method(name).name == name]
# All methods on all hosts; the rest of the ablation, whose layers are the same, on one.
CASES = [(host, name) for host in HOSTS for name in METHODS if (host, name) != ("transformers", "head")]
CASES += [("timm", name) for name in ABLATION]
adapting = [(host, name) for host, name in CASES if find_method(name).adapts_layers]


def mixed_output(model, host, names):
    """Output for a batch of `example`, one adapter name per sample; the first input goes in by position."""
    first, *others = example(host).items()
    result = model(first[1], **dict(others), adapter_names=names)
    return result if isinstance(result, torch.Tensor) else result[0]


def base_output(host):
    return output(fresh(host)[0], host)


@pytest.mark.parametrize(("host", "method"), CASES)
def test_starts_as_the_base_and_trains_what_it_should(host, method):
    model = build(host, method)
    close(output(model, host), base_output(host))
    shake(model)
    output(model, host).square().sum().backward()
    probe_gradients(model)
    parameters = dict(model.named_parameters())
    assert all(p.grad is None for p in parameters.values() if not p.requires_grad)
    allowed = re.compile(r"onelora_|lora_|vera_lambda|mora_m|\.modules_to_save\.default\.")
    assert all(allowed.search(name) for name, p in parameters.items() if p.requires_grad)


@pytest.mark.parametrize(("host", "method"), CASES)
def test_saves_loads_switches_and_is_disabled(host, method, tmp_path):
    model = shake(build(host, method))
    expected, base = output(model, host), base_output(host)
    assert not torch.allclose(expected, base, rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        close(output(model, host), base)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(fresh(host)[0], tmp_path)
    assert torch.equal(output(loaded, host), expected)
    assert trainable_parameters(loaded) == 0
    other = shake(build(host, method), seed=1)
    other.load_adapter(tmp_path, "second")
    own = output(other, host)
    other.set_adapter("second")
    assert torch.equal(output(other, host), expected)
    other.set_adapter("default")
    assert torch.equal(output(other, host), own) and not torch.equal(own, expected)
    other.delete_adapter("second")
    assert torch.equal(output(other, host), own)


@pytest.mark.parametrize(("host", "method"), CASES)
def test_merges_to_the_same_output_and_back(host, method):
    model = shake(build(host, method))
    expected = output(model, host)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.merge_adapter(safe_merge=True)
    close(output(model, host), expected)
    model.unmerge_adapter()
    close(output(model, host), expected)
    if method not in ("lora", "dora", "vera"):
        after = model.state_dict()
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    merged = model.merge_and_unload()
    assert not any(isinstance(m, (BaseTunerLayer, ModulesToSaveWrapper)) for m in merged.modules())
    close(output(merged, host), expected)


@pytest.mark.parametrize(("host", "method"), [case for case in CASES if case[1] not in ("dora", "vera")])
def test_mixed_batches_give_each_sample_its_adapter(host, method):
    model = shake(build(host, method))
    if (host, method) == ("transformers", "full"):
        # transformers records the outputs of its layers as they run, here each on a part of the batch.
        with pytest.raises(ValueError, match="adapter_names"):
            mixed_output(model, host, ["default", "__base__"])
        return
    expected, base = output(model, host), base_output(host)
    for names, rows in ((["default", "__base__"], (expected, base)), (["__base__", "default"], (base, expected))):
        mixed = mixed_output(model, host, names)
        close(mixed, torch.stack([row[i] for i, row in enumerate(rows)]))


@pytest.mark.parametrize(("host", "method"), adapting)
def test_several_active_adapters_add_up_as_they_merge(host, method):
    model, adaptation = fresh(host)
    model = apply_method(model, method, Adaptation(adaptation.target_modules, adaptation.norm_modules)).eval()
    config = type(model.peft_config["default"])(
        **{**model.peft_config["default"].to_dict(), "modules_to_save": None, "peft_type": None}
    )
    model.add_adapter("second", config)
    model.base_model.set_adapter(["default", "second"])
    shake(model)
    expected = output(model, host)
    model.merge_adapter()
    if method != "dora":  # two DoRA adapters each take the norm of their own; merging cannot follow
        close(output(model, host), expected)


@pytest.mark.parametrize("method", [*METHODS, *ABLATION])
def test_what_is_trained_is_fp32_on_a_bf16_base(method):
    model = build("timm", method, torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    y = model(example("timm")["x"].bfloat16())
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    torch.testing.assert_close(y.float(), base_output("timm"), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("method", OURS)
def test_the_file_holds_what_is_trained(method):
    model = build("diffusers", method)
    assert saved_parameters(model) >= trainable_parameters(model)
    if method != "full":  # DiT's position table is a buffer of a module that is trained whole
        assert saved_parameters(model) == trainable_parameters(model)


@pytest.mark.parametrize("method", ["onelora", "onelora_norms", "head", "full"])
def test_the_head_is_told_from_what_the_method_trains(method):
    model = build("timm", method)
    names = [name.split(".")[-1] for name in head_parameters(model)]
    assert names == ["weight", "bias"] and all("head" in name for name in head_parameters(model))
    assert not head_parameters(model.get_base_model())


def test_there_are_fifteen_combinations_under_canonical_names():
    assert len(COMBINATIONS) == 15 == len(set(COMBINATIONS))
    names = {"sum": "onelora", "sum+norms": "onelora_norms", "bias": "bitfit", "bias+scale+norms": "difffit"}
    for combination in COMBINATIONS:
        assert find_method(combination).name == names.get(combination, combination)
        backwards = "+".join(reversed(combination.split("+")))
        assert find_method(backwards).name == find_method(combination).name


def test_combinations_train_their_parts():
    sizes = {name: trainable_parameters(build("timm", name)) for name in ["head", *COMBINATIONS]}
    parts = {part: sizes[part] - sizes["head"] for part in PARTS}
    assert all(parts.values()) and parts["sum"] == parts["bias"] == parts["scale"]
    for name in COMBINATIONS:
        assert sizes[name] == sizes["head"] + sum(parts[part] for part in name.split("+"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [("onelra", "did you mean 'onelora'"), ("sum+norm", "did you mean 'sum\\+norms'"), ("sum+sum", "")],
)
def test_an_unknown_method_names_the_nearest(name, hint):
    with pytest.raises(InputError, match=f"unknown method '{re.escape(name)}'.*{hint}"):
        find_method(name)


def test_a_hint_where_gamma_can_diverge():
    for name in [*METHODS, *COMBINATIONS]:
        row = find_method(name)
        assert ("gamma" in row.hint) == ({"sum", "scale"} <= set(row.name.split("+")))


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("onelora", {"rank": 4}, "rank does not apply to method onelora"),
        ("vera", {"lora_alpha": 4}, "lora_alpha does not apply to method vera"),
        ("bitfit", {"compression": "random"}, "compression does not apply to method bitfit"),
        ("onelora", {"compression": "mean"}, "compression='mean'"),
        ("onelora", {"compression_rank": 4}, "compression_rank is for compression 'subspace', not 'sum'"),
        ("onelora", {"compression": "subspace", "compression_rank": 1000}, "a whole number from 1 to 256"),
        ("lora", {"rank": 0}, "rank=0"),
        ("lora", {"target_modules": "atn"}, "matches no layer; the layers are blocks.N.attn.qkv"),
        ("lora", {"target_modules": "(attn"}, "target_modules='(attn' is not a regular expression"),
        ("head", {"target_modules": "attn"}, "target_modules does not apply to method head"),
        ("lora", {"lora_alpha": 0}, "lora_alpha=0"),
        ("lora", {"extra_modules_to_save": ["haed"]}, "'haed'; did you mean 'head'"),
    ],
)
def test_options_that_do_not_fit_are_refused(method, options, message):
    with pytest.raises(InputError, match=re.escape(message)):
        build("timm", method, **options)


def test_nothing_to_train_is_refused():
    model, adaptation = fresh("timm")
    with pytest.raises(InputError, match="head trains nothing"):
        apply_method(model, "head", Adaptation(adaptation.target_modules))
    with pytest.raises(InputError, match="no linear layer"):
        apply_method(model, "lora", Adaptation([], whole_modules=["head"]))


def test_options_reach_the_configs():
    lora = build("timm", "lora", rank=3).peft_config["default"]
    assert (lora.r, lora.lora_alpha) == (3, 3)
    assert build("timm", "dora", rank=2, lora_alpha=8).peft_config["default"].lora_alpha == 8
    assert build("timm", "onelora", compression="singular").peft_config["default"].compression == "singular"
    subspace = build("timm", "onelora", compression="subspace", compression_rank=3).peft_config["default"]
    assert (subspace.compression, subspace.compression_rank) == ("subspace", 3)
    random = build("timm", "sum+bias", compression="random", seed=5).peft_config["default"]
    assert (random.compression, random.compression_seed) == ("random", 5)
    assert build("timm", "vera", seed=5).peft_config["default"].projection_prng_key == 5


def test_layers_are_chosen_by_an_expression():
    model = build("timm", "onelora_norms", target_modules=r"\.0\.attn|fc2")
    adapted = {n for n, m in model.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)}
    assert adapted == {"blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc2", "blocks.1.mlp.fc2"}
    assert model.get_submodule("base_model.model.head.modules_to_save.default").weight.requires_grad


def test_initial_values_come_from_the_seed_alone():
    def first(seed):
        torch.rand(1)
        return (
            build("timm", "lora", seed=seed).get_submodule("base_model.model.blocks.0.attn.qkv.lora_A.default").weight
        )

    state = torch.get_rng_state()
    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))
    torch.set_rng_state(state)
    build("timm", "lora")
    assert torch.equal(torch.get_rng_state(), state)


def test_extra_modules_and_modules_inside_others():
    model = build("timm", "onelora_norms", extra_modules_to_save=["patch_embed", "blocks.1"])
    wrapped = {n for n, m in model.get_base_model().named_modules() if isinstance(m, ModulesToSaveWrapper)}
    assert wrapped == {"head", "norm", "patch_embed", "blocks.1", "blocks.0.norm1", "blocks.0.norm2"}
    adapted = {n for n, m in model.get_base_model().named_modules() if isinstance(m, BaseTunerLayer)}
    assert adapted and all(name.startswith("blocks.0.") for name in adapted)


def test_full_trains_all_but_the_roots_own_parameters():
    model = build("timm", "full")
    base, _ = fresh("timm")
    root = sum(p.numel() for p in base.parameters(recurse=False))
    assert trainable_parameters(model) == sum(p.numel() for p in base.parameters()) - root > 0


class Alike(nn.Module):
    """Names that are the end of other names: what PEFT's matching by the end of a name gets wrong."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.inner = nn.ModuleDict({"fc": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "other_norm": nn.LayerNorm(4)})
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 4)
        self.decode_head = nn.Linear(4, 4)

    def forward(self, x):
        x = self.inner["other_norm"](self.inner["norm"](self.inner["fc"](self.fc(x))))
        return self.decode_head(self.head(self.norm(x)))


def touched(model):
    kinds = (BaseTunerLayer, ModulesToSaveWrapper)
    return {name for name, m in model.get_base_model().named_modules() if isinstance(m, kinds)}


@pytest.mark.parametrize("method", METHODS)
def test_names_that_end_alike_are_told_apart_or_refused(method, tmp_path):
    adaptation = Adaptation(["fc"], ["norm"], ["inner.norm"])
    expected = {"inner.norm"} | ({"fc"} if find_method(method).adapts_layers else set())
    expected |= {"norm"} if find_method(method).trains_norms else set()
    if method != "full":
        model = apply_method(Alike(), method, adaptation)
        assert touched(model) == expected
        model.save_pretrained(tmp_path)
        assert touched(PeftModel.from_pretrained(Alike(), tmp_path)) == expected
    clashing = Adaptation(["fc"], [], ["head"])
    if method in ("lora", "dora", "vera"):
        with pytest.raises(InputError, match="PEFT takes decode_head for head"):
            apply_method(Alike(), method, clashing)
    elif method != "full":
        assert "decode_head" not in touched(apply_method(Alike(), method, clashing))
