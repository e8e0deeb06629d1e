import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model
from torch import nn

from onelora_vision import OneLoraConfig
from onelora_vision.errors import InputError
from onelora_vision.training.sum_scale import rates_by_sums
from onelora_vision.tuners.onelora.compression import random_compression


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


class Task:
    def __init__(self, model):
        self.model = model

    def forward(self, batch):
        assert not self.model.training and not torch.is_grad_enabled()
        return {"loss": self.model(batch["x"]).mean()}


def factors(batch, **options):
    torch.manual_seed(0)
    model = get_peft_model(Net(), OneLoraConfig(target_modules=["first", "second"], **options)).train()
    found = rates_by_sums(Task(model), batch, Accelerator(cpu=True))
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())
    return {name.removeprefix("base_model.model."): factor for name, factor in found.items()}


def test_a_rate_is_divided_by_the_rms_of_the_sums():
    x = torch.randn(2, 5, 4) + 3
    found = factors({"x": x})
    assert found["first.onelora_b.default"] == pytest.approx(1 / x.sum(-1).square().mean().sqrt().item(), rel=1e-5)
    found = factors({"x": x}, compression="random", compression_seed=2)
    sums = x @ random_compression(4, 2)
    assert found["first.onelora_b.default"] == pytest.approx(1 / sums.square().mean().sqrt().item(), rel=1e-5)


def test_sums_that_are_rounding_errors_count_as_the_input_itself():
    """Behind a LayerNorm with neutral parameters |x| is the root of the width, and the sum nothing."""
    found = factors({"x": torch.randn(2, 5, 4)})
    assert found["second.onelora_b.default"] == pytest.approx(1 / 6**0.5, rel=1e-2)


def test_padding_does_not_count():
    x, mask = torch.randn(2, 5, 4) + 3, torch.ones(2, 5, dtype=torch.long)
    alone = factors({"x": x[:1]})
    x[1], mask[1] = 100.0, 0
    assert factors({"x": x, "attention_mask": mask}) == pytest.approx(alone, rel=1e-5)


def test_without_an_input_the_rate_is_the_plain_one():
    assert factors({"x": torch.zeros(2, 5, 4)})["first.onelora_b.default"] == 1


def test_methods_without_sum_are_refused():
    with pytest.raises(InputError, match="--sum_scale rms is for methods with sum"):
        factors({"x": torch.zeros(1, 4)}, use_sum=False, use_bias=True)
