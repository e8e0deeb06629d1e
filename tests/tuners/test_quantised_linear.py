"""Training on frozen layers of 8 and 4 bits, by ``--quantize``; bases of other libraries are in test_quantised.py."""

import pytest
import torch
from tiny_hosts import HOSTS, example, fresh, save_base, trained_on
from torch import nn

from onelora_vision.adapters.bases import load_base
from onelora_vision.adapters.export import export
from onelora_vision.adapters.file import save_adapter
from onelora_vision.backbones.base import output_of
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method
from onelora_vision.training.compilation import compile_blocks
from onelora_vision.tuners.quantised import KINDS, Int8Linear, nf4_values, quantise_linears


@pytest.fixture(params=KINDS)
def pair(request):
    torch.manual_seed(0)
    layer = nn.Linear(50, 33).requires_grad_(False)
    layer.weight[3] *= 1000
    layer.weight[4:10] = 0
    return layer, KINDS[request.param](layer)


def values_of(quantised):
    """The weight (33, 50) that a layer keeps, computed from its codes one by one."""
    if isinstance(quantised, Int8Linear):
        return quantised.weight * quantised.weight_scale[:, None]
    values, found = nf4_values().tolist(), []
    for row, scale in zip(quantised.weight.tolist(), quantised.weight_scale.tolist()):
        found += [scale * values[code] for byte in row for code in divmod(byte, 16)]
    return torch.tensor(found[: 33 * 50]).view(33, 50)


def test_the_values_of_nf4_are_the_published_ones():
    expected = [-1, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0, 0.0795803, 0.1609302,
                0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1]  # fmt: skip
    torch.testing.assert_close(nf4_values(), torch.tensor(expected, dtype=torch.float32), rtol=0, atol=1e-6)


def test_a_value_is_off_by_at_most_half_a_step(pair):
    layer, quantised = pair
    off = (values_of(quantised) - layer.weight).abs()
    if isinstance(quantised, Int8Linear):
        assert (off <= layer.weight.abs().amax(1, keepdim=True) / 127 * 0.5001).all()
        assert quantised.weight.dtype == torch.int8
    else:
        blocks, magnitudes = (nn.functional.pad(t.flatten(), (0, 14)).view(-1, 64) for t in (off, layer.weight.abs()))
        assert (
            blocks.amax(1) <= 0.152 * magnitudes.amax(1) + 1e-9
        ).all() and 2 * quantised.weight.nbytes < 33 * 50 + 64
        assert off.square().mean().sqrt() < 0.12 * layer.weight.square().mean().sqrt()  # so the nearest are taken
    assert quantised.bias is layer.bias and not any(p.requires_grad for p in quantised.parameters())


@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradient_are_those_of_the_values_it_keeps(pair, bias):
    _, quantised = pair
    if not bias:
        quantised.bias = None
    values = values_of(quantised)
    x = torch.randn(2, 5, 50, requires_grad=True)
    y = quantised(x)
    torch.testing.assert_close(y, nn.functional.linear(x, values, quantised.bias), rtol=1e-4, atol=1e-3)
    given = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, given)
    torch.testing.assert_close(gradient, given @ values, rtol=1e-4, atol=1e-2)


def test_nothing_but_its_own_tensors_is_kept_for_the_backward_pass(pair):
    _, quantised = pair
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        y = quantised(torch.randn(5, 50, requires_grad=True))
    assert y.dtype == torch.bfloat16
    own = [quantised.weight, *quantised.buffers()]
    assert set(kept) == {tensor.data_ptr() for tensor in own}


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_under_two_names_stays_one_and_others_stay_what_they_are(kind):
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Bilinear(2, 2, 2), "d": nn.Linear(4, 4)})
    quantise_linears(model, ["a", "b", "c"], kind)
    assert type(model["a"]) is KINDS[kind] and model["a"] is model["b"]
    assert type(model["c"]) is nn.Bilinear and type(model["d"]) is nn.Linear


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("method", ["onelora", "difffit", "lora", "vera", "mora6", "head"])
@pytest.mark.parametrize("kind", KINDS)
def test_methods_train_on_it_and_are_close_to_the_full_precision(host, method, kind):
    outputs = []
    for quantize in ("none", kind):
        model, adaptation = fresh(host)
        if method == "head" and not adaptation.whole_modules:
            return
        torch.manual_seed(0)
        adapted = apply_method(model, method, adaptation, quantize=quantize)
        outputs.append(output_of(adapted, example(host)))
    outputs[1].square().mean().backward()
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained) and any(p.grad.any() for p in trained)
    frozen = [p for n, p in adapted.named_parameters() if n.endswith("weight") and not p.is_floating_point()]
    assert len(frozen) == len(adaptation.target_modules)
    difference = (outputs[1] - outputs[0]).abs().max() / outputs[0].abs().max()
    assert 0 < difference < (0.1 if kind == "int8" else 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_merged_into_the_full_precision(kind, tmp_path, forked_reloads):
    base = save_base("timm", tmp_path / "base")
    info = trained_on(base, "timm", tmp_path / "a").info
    loaded = load_base(info)
    model = apply_method(loaded.model, "onelora", loaded.adaptation(), quantize=kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    with pytest.raises(InputError, match=r"quantised or sharded \(u?int8\).*full precision"):
        model.merge_and_unload()
    adapter = save_adapter(model, tmp_path / "int8", info)
    assert loaded.fingerprint() == info.base_fingerprint
    result = export(adapter, "merged", tmp_path / "merged")
    assert result["error"] < 1e-5 < result["effect"]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("full", {}, "--quantize with --method full: it trains or reads the frozen weights"),
        ("dora", {}, "--quantize with --method dora"),
        ("oft", {}, "--quantize with --method oft"),
        ("onelora", {"quantize": "int4"}, "--quantize int4: choose none, int8, nf4"),
        ("onelora", {"compression": "singular"}, "reads the weight, which is quantised"),
        ("lora", {"peft_fields": {"peft_type": "LORA"}}, "--quantize with --peft_config"),
    ],
)
def test_what_needs_the_weights_is_refused(method, options, message):
    model, adaptation = fresh("timm")
    with pytest.raises(InputError, match=message):
        apply_method(model, method, adaptation, **{"quantize": "int8", **options})


@pytest.mark.slow
@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_blocks_compute_the_same(precision, kind):
    model, adaptation = fresh("timm")
    adapted = apply_method(model, "onelora", adaptation, quantize=kind)
    outputs = []
    for compiles in (False, True):
        if compiles:
            compile_blocks(adapted)
        with torch.autocast("cpu", precision, enabled=precision is not None):
            outputs.append(output_of(adapted, example("timm")).float())
    torch.testing.assert_close(*outputs, rtol=0.05, atol=0.02 if precision else 1e-4)
    outputs[1].square().mean().backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
