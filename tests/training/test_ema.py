import pytest
import torch
from torch import nn

from onelora_vision.training.ema import EMA


def model_with(value):
    model = nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    with torch.no_grad():
        model.weight.fill_(value)
    return model


def test_the_average_warms_up_to_its_decay():
    model = model_with(0.0)
    ema = EMA(model, decay=0.15)
    with torch.no_grad():
        model.weight.fill_(1.0)
    expected = 0.0
    for decay in (0.1, 0.15, 0.15):  # (1 + 0) / (10 + 0), then 2/11 > 0.15
        ema.update()
        expected = decay * expected + (1 - decay)
        assert ema.average["weight"].item() == pytest.approx(expected)
    assert list(ema.average) == ["weight"]


def test_it_stands_in_for_the_weights_only_inside_the_block():
    model = model_with(3.0)
    ema = EMA(model, decay=0.9)
    with torch.no_grad():
        model.weight.fill_(5.0)
    with pytest.raises(KeyError), ema.applied():
        assert model.weight.item() == 3.0
        raise KeyError
    assert model.weight.item() == 5.0 and ema.average["weight"].item() == 3.0
    ema.copy_to_model()
    assert model.weight.item() == 3.0


def test_it_is_fp32_for_a_bf16_model():
    model = model_with(1.0).to(torch.bfloat16)
    ema = EMA(model, decay=0.999)
    ema.updates = 10**6
    with torch.no_grad():
        model.weight.fill_(2.0)
    ema.update()
    before = ema.average["weight"].item()
    assert before == pytest.approx(1.001, abs=1e-6)
    with ema.applied():
        assert model.weight.item() == 1.0
    assert ema.average["weight"].item() == before and model.weight.item() == 2.0
