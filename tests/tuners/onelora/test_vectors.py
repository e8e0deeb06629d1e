import itertools

import pytest
import torch
import torch.nn.functional as F

from onelora_vision.tuners.onelora import operator
from onelora_vision.tuners.onelora.compression import random_compression
from onelora_vision.tuners.onelora.vectors import Vectors, compose, delta_weight, merged

D, K = 6, 5
PARTS = [set(c) for size in (1, 2, 3) for c in itertools.combinations(("b", "beta", "gamma"), size)]


@pytest.mark.parametrize("parts", PARTS, ids=lambda p: "+".join(sorted(p)))
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_merged_layer_and_delta_equal_the_adapted_layer(parts, with_bias, count):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 9, K, dtype=torch.float64), torch.randn(D, K, dtype=torch.float64)
    bias = torch.randn(D, dtype=torch.float64) if with_bias else None
    v = None if count == 1 else torch.randn(count, K, dtype=torch.float64)
    vectors = Vectors(**{part: torch.randn(D, dtype=torch.float64) for part in sorted(parts)}, v=v)
    expected = operator.linear(x, weight, bias, [vectors])
    new_weight, new_bias = merged(weight, bias, [vectors])
    torch.testing.assert_close(F.linear(x, new_weight, new_bias), expected)
    torch.testing.assert_close(weight + delta_weight(weight, [vectors]), new_weight)
    assert (new_bias is None) == (not with_bias and "beta" not in parts)


def test_merging_never_shares_memory_with_the_original():
    weight, bias = torch.randn(D, K), torch.randn(D)
    new_weight, new_bias = merged(weight, bias, [Vectors(beta=torch.zeros(D))])
    assert new_weight.data_ptr() != weight.data_ptr() and new_bias.data_ptr() != bias.data_ptr()


def test_composition_is_the_documented_formula_in_any_order():
    torch.manual_seed(0)
    ones = [Vectors(*(torch.randn(D, dtype=torch.float64) for _ in range(3))) for _ in range(3)]
    weights = [1.0, 0.5, -2.0]
    weight, bias = torch.randn(D, K, dtype=torch.float64), torch.randn(D, dtype=torch.float64)
    gamma = torch.stack([1 + s * (a.gamma - 1) for a, s in zip(ones, weights)]).prod(0)
    expected_weight = gamma[:, None] * weight + sum(s * a.b for a, s in zip(ones, weights))[:, None]
    expected_bias = gamma * (bias + sum(s * a.beta for a, s in zip(ones, weights)))
    for order in itertools.permutations(range(3)):
        composed = compose([ones[i] for i in order], [weights[i] for i in order])
        assert len(composed) == 1
        new_weight, new_bias = merged(weight, bias, composed)
        torch.testing.assert_close(new_weight, expected_weight)
        torch.testing.assert_close(new_bias, expected_bias)


def test_composition_keeps_different_compressions_apart():
    torch.manual_seed(0)
    v = random_compression(K, 1)
    adapters = [Vectors(b=torch.randn(D)), Vectors(b=torch.randn(D), v=v), Vectors(b=torch.randn(D), v=v)]
    composed = compose(adapters)
    assert [c.v is None for c in composed] == [True, False]
    weight = torch.randn(D, K)
    expected = weight + adapters[0].b[:, None] + (adapters[1].b + adapters[2].b)[:, None] * v
    torch.testing.assert_close(merged(weight, None, composed)[0], expected)
