from types import SimpleNamespace

import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from onelora_vision import InputError, OneLoraConfig, probe_gradients
from onelora_vision.tuners import check_load_result

TINY = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 3}


def backward(model):
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    return model


def adapt_all_linears(name, config):
    model = timm.create_model(name, **TINY)
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "head"]
    return backward(get_peft_model(model, config(target_modules=linears)))


class ReadsAWeight(nn.Module):
    """A host that takes a layer's weight and leaves the layer uncalled."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.proj(nn.functional.linear(x, self.qkv.weight))


@pytest.mark.parametrize("config", [OneLoraConfig, LoraConfig])
def test_layers_that_the_host_passes_by_are_named(config):
    model = backward(get_peft_model(ReadsAWeight(), config(target_modules=["qkv", "proj"])))
    with pytest.raises(InputError, match=r"the adapters of qkv:"):
        probe_gradients(model)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "eva02_tiny_patch14_224"])
def test_timms_layers_that_a_lora_of_pefts_own_is_passed_by_are_named(name):
    model = adapt_all_linears(name, LoraConfig)
    with pytest.raises(InputError, match=r"the adapters of blocks\.0\.attn\.qkv, blocks\.1\.attn\.qkv:"):
        probe_gradients(model)


CALLED = ["vit_base_patch16_224", "eva02_base_patch16_clip_224", "beit_base_patch16_224", "eva02_tiny_patch14_224"]


@pytest.mark.parametrize("name", CALLED)
def test_layers_that_the_host_calls_pass(name):
    probe_gradients(adapt_all_linears(name, OneLoraConfig))


def test_a_zero_gradient_is_legitimate():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.gate = nn.Linear(4, 4), nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return self.gate * self.fc(x)

    model = get_peft_model(Gated(), OneLoraConfig(target_modules=["fc"]))
    with pytest.raises(InputError, match="fc"):
        probe_gradients(model)
    model(torch.randn(2, 4)).sum().backward()
    assert model.get_submodule("base_model.model.fc").onelora_b["default"].grad.abs().sum() == 0
    probe_gradients(model)


def test_load_result_of_transformers():
    key = "encoder.0.fc.onelora_b.default"
    check_load_result(SimpleNamespace(missing_keys={"neck.resize.weight"}, unexpected_keys=set()))
    with pytest.raises(InputError, match=r"lacks encoder\.0\.fc\.onelora_b"):
        check_load_result(SimpleNamespace(missing_keys={key, "neck.resize.weight"}, unexpected_keys=set()))
    with pytest.raises(InputError, match=r"no place for encoder\.0\.fc"):
        check_load_result(SimpleNamespace(missing_keys=set(), unexpected_keys={key}))
