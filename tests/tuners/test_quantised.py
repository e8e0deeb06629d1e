"""Bases quantised by bitsandbytes and torchao, where these are installed (``make test-quantised``)."""

import importlib.util

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from onelora_vision import InputError, MoraConfig, OneLoraConfig

X = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
ADAPTERS = {
    "family": lambda **o: OneLoraConfig(use_bias=True, use_scale=True, **o),
    "random": lambda **o: OneLoraConfig(compression="random", **o),
    "mora": MoraConfig,
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Linear(64, 4))


def with_bitsandbytes(kind, **options):
    import bitsandbytes as bnb

    model = net()
    for place in (0, 2):
        layer = getattr(bnb.nn, kind)(64, 64, **options)
        layer.load_state_dict(model[place].state_dict())
        model[place] = layer
    return model.to("cpu")


def with_torchao(kind):
    from torchao import quantization

    model = net()
    quantization.quantize_(model[:3], getattr(quantization, kind)())
    return model


BASES = {
    "bitsandbytes 8 bits": lambda: with_bitsandbytes("Linear8bitLt", has_fp16_weights=False),
    "bitsandbytes 4 bits": lambda: with_bitsandbytes("Linear4bit", compute_dtype=torch.float32),
    "torchao int8": lambda: with_torchao("Int8WeightOnlyConfig"),
    "torchao int8, dynamic": lambda: with_torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao fp8": lambda: with_torchao("Float8WeightOnlyConfig"),
}
INSTALLED = [base for base in BASES if importlib.util.find_spec(base.split()[0])]
if not INSTALLED:
    pytest.skip("neither bitsandbytes nor torchao is installed: make test-quantised", allow_module_level=True)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("base", INSTALLED)
def test_a_quantised_base_trains_saves_loads_mixes_and_is_not_merged(base, adapter, tmp_path):
    plain = BASES[base]()(X)
    model = get_peft_model(BASES[base](), ADAPTERS[adapter](target_modules=["0", "2"], init_weights=False))
    expected = model(X)
    expected.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.requires_grad)
    layer = model.get_base_model()[0]
    for merge in (model.merge_adapter, model.merge_and_unload, layer.merge):
        with pytest.raises(InputError, match=r"cannot merge into 0.*quantised.*full precision"):
            merge()
        assert not layer.merged and torch.equal(model(X), expected)
    mixed = model(X, adapter_names=["default", "__base__"] * 3)
    torch.testing.assert_close(mixed, torch.where(torch.arange(6)[:, None] % 2 == 0, expected, plain))
    with model.disable_adapter():
        assert torch.equal(model(X), plain)
    model.save_pretrained(tmp_path)
    # Trainable, as bitsandbytes computes otherwise in evaluation.
    assert torch.equal(PeftModel.from_pretrained(BASES[base](), tmp_path, is_trainable=True).train()(X), expected)
    assert torch.equal(model.unload()(X), plain)


@pytest.mark.parametrize("base", INSTALLED)
def test_the_adapter_adds_the_same_to_a_quantised_layer_as_to_a_plain_one(base):
    for make in ADAPTERS.values():
        layers = []
        for model in (BASES[base](), net()):
            torch.manual_seed(1)
            layers.append(get_peft_model(model, make(target_modules=["0"], init_weights=False)).get_base_model()[0])
        quantised, layer = layers
        z = quantised.base_layer(X)
        expected = layer(X) - layer.base_layer(X)
        if "onelora_gamma" in dict(layer.named_children()) and "default" in layer.onelora_gamma:
            expected = expected + (layer.onelora_gamma["default"] - 1) * (z - layer.base_layer(X))
        torch.testing.assert_close(quantised(X) - z, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("base", INSTALLED)
def test_what_a_quantised_weight_cannot_give_is_refused_before_anything_changes(base):
    model = BASES[base]()
    with pytest.raises(InputError, match=r"0: compression='singular' reads the weight, which is quantised"):
        get_peft_model(model, OneLoraConfig(target_modules=["0"], compression="singular"))
    with pytest.raises(InputError, match=r"cannot train 2 as a whole: quantised parameters"):
        get_peft_model(model, OneLoraConfig(target_modules=["0"], modules_to_save=["2"]))
    assert torch.equal(model(X), BASES[base]()(X))
