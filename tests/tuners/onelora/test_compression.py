import pytest
import torch

from onelora_vision.tuners.onelora.compression import (
    random_compression,
    singular_compression,
    subspace_compression,
    subspace_rank,
)

D, K = 6, 5


def test_singular_compression_is_the_direction_that_the_weight_magnifies_most():
    left, _, right = torch.linalg.svd(torch.randn(D, K, dtype=torch.float64), full_matrices=False)
    sizes = torch.linspace(1, 0.1, len(right), dtype=torch.float64)
    sizes[1:] *= 0.6
    weight = left @ torch.diag(sizes) @ right
    v = singular_compression(weight)
    start = random_compression(K, 0).double()
    torch.testing.assert_close(v, right[0] * (right[0] @ start).sign() * K**0.5, atol=1e-6, rtol=1e-6)
    for other in (weight.float(), 1e-3 * weight.float(), weight.bfloat16()):
        again = singular_compression(other)
        assert again.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(again.double(), v, dim=0) > 1 - 1e-4
    nothing = singular_compression(torch.zeros(D, K))
    assert torch.equal(nothing, random_compression(K, 0))


def test_singular_compression_is_steady_where_singular_values_are_alike():
    """What is rebuilt on another machine, from weights that differ by a rounding, is the same vector."""
    weight = torch.eye(K) + 1e-6 * torch.randn(K, K)
    v, again = singular_compression(weight), singular_compression(weight * (1 + 1e-7 * torch.randn(K, K)))
    torch.testing.assert_close(again, v, atol=1e-4, rtol=1e-4)


def test_random_compression_has_the_norm_of_ones_and_is_reproducible():
    v = random_compression(768, 5)
    assert v.dtype == torch.float32
    torch.testing.assert_close(v.norm(), torch.tensor(768.0).sqrt())
    assert torch.equal(v, random_compression(768, 5)) and not torch.equal(v, random_compression(768, 6))
    # Pinned: a file stores the seed alone.
    torch.testing.assert_close(
        random_compression(4, 0),
        torch.tensor([1.1599372625350952, 0.2631199061870575, 0.6435606479644775, 1.4734798669815063]),
    )


@pytest.mark.parametrize(("outputs", "inputs", "rank", "count"), [(768, 768, 16, 16), (10, 64, 16, 10), (9, 64, 8, 3),
                                                                  (7, 64, 4, 1), (64, 4, 16, 4), (192, 5, 16, 4)])  # fmt: skip
def test_a_layers_directions_divide_its_outputs(outputs, inputs, rank, count):
    assert subspace_rank(outputs, inputs, rank) == count
    assert subspace_compression(torch.randn(outputs, inputs), rank).shape == (count, inputs)


def test_subspace_compression_is_orthogonal_and_near_what_the_weight_magnifies_most():
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(64, 32, dtype=torch.float64), full_matrices=False)
    weight = left @ torch.diag(torch.logspace(0, -3, 32, dtype=torch.float64)) @ right
    v = subspace_compression(weight, 4)
    torch.testing.assert_close(v @ v.T / 32, torch.eye(4, dtype=torch.float64))
    energy = (weight @ v.T).square().sum() / 32
    assert energy > 0.95 * torch.linalg.svdvals(weight)[:4].square().sum()


@pytest.mark.parametrize("spectrum", [torch.ones(K), torch.tensor([1.0, 1, 1, 1e-3, 1e-3]), torch.logspace(0, -4, K)])
def test_subspace_compression_is_steady(spectrum):
    """Also where singular values are alike, and on a weight in bf16, in fp32 or behind another rounding."""
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, K, dtype=torch.float64))[0] for n in (16, K))
    weight = (left * spectrum) @ right.T
    v = subspace_compression(weight.float(), 4)
    assert v.dtype == torch.float32
    again = subspace_compression(weight.float() * (1 + 1e-7 * torch.randn(16, K)), 4)
    torch.testing.assert_close(again, v, atol=1e-4, rtol=1e-4)
    if spectrum[3] > 2**-9:  # else the fourth direction is one of bf16's roundings
        assert (subspace_compression(weight.bfloat16(), 4) - v).norm() / v.norm() < 0.05


def test_subspace_compression_of_a_weight_that_magnifies_little_is_orthogonal_still():
    for weight in (torch.zeros(8, 6), torch.ones(8, 6), torch.eye(8)[:, :6] * torch.tensor([1, 1, 0, 0, 0, 0])):
        v = subspace_compression(weight, 4)
        torch.testing.assert_close(v @ v.T / 6, torch.eye(4), atol=1e-6, rtol=0)


def test_subspace_compression_is_pinned():
    """A file stores no direction."""
    weight = torch.arange(24, dtype=torch.float32).view(4, 6).sin()
    torch.testing.assert_close(
        subspace_compression(weight, 2)[:, :3],
        torch.tensor([[-0.5975782, 0.7757401, 1.4358466], [-1.2963559, -1.1377422, 0.0669064]]),
    )
