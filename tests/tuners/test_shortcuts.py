import pytest
import timm
import torch
from peft import LoraConfig, get_peft_model

from onelora_vision.tuners.shortcuts import call_adapted_layers, called_on_request, restore_shortcuts

NAMES = ["blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.1.mlp.fc1"]


def beit(**options):
    torch.manual_seed(0)
    model = timm.create_model(
        "beit_base_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=2, num_classes=3, **options
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def test_layers_that_stock_peft_does_not_reach_are_named():
    assert called_on_request(beit(), NAMES) == NAMES[:2]
    assert called_on_request(beit(), NAMES[1:]) == NAMES[1:2]
    assert called_on_request(beit(qkv_bias=False), NAMES) == []
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=24, num_heads=2)
    assert called_on_request(vit, NAMES) == []


@pytest.mark.parametrize("bias", [True, False])
def test_what_is_named_is_what_peft_has_no_effect_on_until_it_is_called(bias):
    model, x = beit(qkv_bias=bias), torch.randn(1, 3, 32, 32)
    named = called_on_request(model, NAMES)
    with torch.no_grad():
        plain = model(x)
        adapted = get_peft_model(model, LoraConfig(target_modules=NAMES[:2], init_lora_weights=False))
        assert torch.equal(adapted(x), plain) == bool(named)
        call_adapted_layers(adapted)
        assert not torch.allclose(adapted(x), plain)
        base = adapted.unload()
        restore_shortcuts(base)
        assert torch.equal(base(x), plain)
