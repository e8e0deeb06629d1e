import torch

from onelora_vision.tuners.onelora.compression import random_compression, singular_compression

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
