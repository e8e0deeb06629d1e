import pytest
import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from onelora_vision.backbones.fuse import FusedAttention, fuse_qkv, unfuse_qkv
from onelora_vision.errors import InputError

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


@pytest.fixture(params=["vit", "vit without qkv bias", "dinov2"])
def model(request):
    torch.manual_seed(0)
    if request.param == "dinov2":
        return Dinov2Model(Dinov2Config(**SMALL)).eval()
    return ViTModel(ViTConfig(**SMALL, intermediate_size=64, qkv_bias=request.param == "vit")).eval()


def test_a_model_without_split_attention_is_refused():
    with pytest.raises(InputError, match="Linear has no attention with separate q, k, v"):
        fuse_qkv(nn.Linear(2, 2))


@torch.no_grad()
def test_fused_and_split_again(model):
    images = torch.rand(2, 3, 16, 16)
    expected, weights = model(images).last_hidden_state, {k: v.clone() for k, v in model.state_dict().items()}
    linears = sum(isinstance(module, nn.Linear) for module in model.modules())
    fuse_qkv(model)
    assert sum(isinstance(module, FusedAttention) for module in model.modules()) == 2
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == linears - 4
    torch.testing.assert_close(model(images).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    unfuse_qkv(model)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(images).last_hidden_state, expected)
