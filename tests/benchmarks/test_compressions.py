"""The study's other compression vectors: what they are, and that they reach the layers."""

import pytest
import torch
from tiny_hosts import example, fresh

from benchmarks.compressions import SCALES, VECTORS, changing, make_vector, scaled
from onelora_vision.methods.apply import apply_method
from onelora_vision.tuners.onelora.compression import random_compression
from onelora_vision.tuners.onelora.layer import OneLoraLayer


@pytest.mark.parametrize("vector", VECTORS)
def test_vectors_have_the_length_of_ones(vector):
    random, inputs = random_compression(9, 3), torch.randn(50, 9)
    assert make_vector(vector, random, inputs).norm() == pytest.approx(3, rel=1e-5)


def test_data_give_their_first_direction():
    direction = torch.tensor([0.6, 0.8, 0.0])
    inputs = torch.randn(200, 1) * direction + torch.tensor([0.0, 0.0, 9.0])  # the mean is not a component
    assert abs(make_vector("principal", torch.ones(3), inputs) @ direction) == pytest.approx(3**0.5, rel=1e-2)


def test_scales():
    assert scaled(torch.ones(4), "unit").tolist() == [0.5] * 4
    assert scaled(torch.ones(4), "ones").tolist() == [1.0] * 4


@pytest.mark.parametrize(("vector", "scale"), [("principal", "ones"), ("ones", "unit"), ("signs", "ones")])
def test_layers_get_their_vectors_by_the_first_training_forward(vector, scale):
    assert vector in VECTORS and scale in SCALES
    cost = []
    base, adaptation = fresh("timm")
    model = changing(apply_method, vector, scale, cost)(base, "onelora", adaptation, compression="random", seed=4)
    layers = [module for module in model.modules() if isinstance(module, OneLoraLayer)]
    inputs = example("timm")
    with torch.no_grad():
        before = model.eval()(**inputs)
    assert len(cost) == (0 if vector == "principal" else len(layers))  # evaluation does not calibrate
    torch.testing.assert_close(model.train()(**inputs), before)
    model(**inputs)
    assert len(cost) == len(layers)  # once each
    for layer in layers:
        assert not torch.equal(layer.vectors("default").v, random_compression(layer.in_features, 4))
        if vector == "ones":
            assert len(layer.vectors("default").v.unique()) == 1
