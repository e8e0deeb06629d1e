import pytest
import torch

from onelora_vision.errors import InputError
from onelora_vision.metrics.manifold import density_coverage, precision_recall


def line(*values):
    return torch.tensor(values)[:, None]


def test_known_points_on_a_line():
    """k = 1: the reference's balls are [-1, 1], [0, 2], [1, 3] and [8, 12] around 0, 1, 2 (radius 1) and 10 (8)."""
    reference, generated = line(0.0, 1.0, 2.0, 10.0), line(0.5, 2.9, 30.0, 31.0)
    precision, recall = precision_recall(generated, reference, k=1)
    assert precision == 0.5  # 0.5 and 2.9; 10's ball ends at 18
    # the generated balls: 0.5 and 2.9 reach 2.4 far, 30 and 31 one
    assert recall == 0.75  # 0, 1 and 2
    density, coverage = density_coverage(generated, reference, k=1)
    assert density == (2 + 2 + 0 + 0) / 4  # 0.5 in the balls of 0 and 1; 2.9 in those of 2 and 10
    assert coverage == 1.0


def test_agrees_with_torch_fidelity():
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    generator = torch.Generator().manual_seed(0)
    generated, reference = torch.randn(80, 5, generator=generator), torch.randn(70, 5, generator=generator) * 0.7
    assert precision_recall(generated, reference) == pytest.approx(
        calculate_precision_recall_full(generated, reference)
    )


def test_density_is_near_one_for_equal_distributions():
    generator = torch.Generator().manual_seed(0)
    density, coverage = density_coverage(*torch.randn(2, 1500, 4, generator=generator))
    assert density == pytest.approx(1, abs=0.05) and 0.9 < coverage <= 1


def test_too_few_images():
    with pytest.raises(InputError, match="at least 4 images"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))
