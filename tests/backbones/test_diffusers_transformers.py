"""1LoRA on diffusers' other transformers: inject, train one step, hand over as a rank-1 LoRA that needs no onelora_vision."""

import copy

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from peft import get_peft_model, inject_adapter_in_model, set_peft_model_state_dict

from onelora_vision import OneLoraConfig, probe_gradients


def pixart():
    model = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        cross_attention_dim=24,
    )
    conditions = {"aspect_ratio": None, "resolution": None}
    inputs = {"timestep": torch.tensor([1, 5]), "encoder_hidden_states": torch.randn(2, 4, 32)}
    return model, {"hidden_states": torch.randn(2, 4, 8, 8), "added_cond_kwargs": conditions, **inputs}


def sd3():
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
    )
    text = {"encoder_hidden_states": torch.randn(2, 5, 32), "pooled_projections": torch.randn(2, 64)}
    return model, {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([1, 5]), **text}


def flux():
    model = FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    )
    text = {"encoder_hidden_states": torch.randn(2, 5, 32), "pooled_projections": torch.randn(2, 32)}
    positions = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3), "timestep": torch.tensor([0.1, 0.5])}
    return model, {"hidden_states": torch.randn(2, 16, 4), **text, **positions}


def sana():
    model = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
    )
    inputs = {"encoder_hidden_states": torch.randn(2, 5, 8), "timestep": torch.tensor([1, 5])}
    return model, {"hidden_states": torch.randn(2, 4, 8, 8), **inputs}


@pytest.mark.parametrize("make", [pixart, sd3, flux, sana])
def test_inject_one_step_and_export(make):
    torch.manual_seed(0)
    model, inputs = make()
    plain = copy.deepcopy(model)
    config = OneLoraConfig(target_modules="all-linear")
    if hasattr(model, "add_adapter"):
        model.add_adapter(config)
    else:  # PixArt has no PeftAdapterMixin
        model = get_peft_model(model, config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    start = model(**inputs).sample
    torch.testing.assert_close(start, plain(**inputs).sample, rtol=1e-5, atol=1e-6)  # b = 0 is the identity
    start.square().mean().backward()
    probe_gradients(model)
    optimizer.step()
    with torch.no_grad():
        adapted = model(**inputs).sample
        assert not torch.allclose(adapted, start, atol=1e-4)
        convert_to_lora = pytest.importorskip("peft.tuners.lora.conversion", reason="PEFT 0.18 cannot").convert_to_lora
        lora_config, tensors = convert_to_lora(model, rank=1)
        inject_adapter_in_model(lora_config, plain)
        result = set_peft_model_state_dict(plain, tensors)
        assert not result.unexpected_keys
        torch.testing.assert_close(plain(**inputs).sample, adapted, rtol=1e-3, atol=1e-4)
