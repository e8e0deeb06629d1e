import math

import pytest
import torch

from onelora_vision.tasks.depth_losses import gradient_matching, scale_and_shift_invariant, silog

LOSSES = (silog, gradient_matching, scale_and_shift_invariant)


def random_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    prediction, depth = (torch.rand(2, 6, 7, generator=generator) * 9 + 1 for _ in range(2))
    return prediction, depth, torch.rand(2, 6, 7, generator=generator) > 0.3


def test_silog_by_hand():
    prediction, depth = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[2.0, 4.0]]])
    valid, d = torch.ones(1, 1, 2, dtype=torch.bool), math.log(1.5)
    for silog_lambda in (0.5, 0.85):
        expected = math.sqrt(d**2 / 2 - silog_lambda * (d / 2) ** 2)
        assert silog(prediction, depth, valid, silog_lambda).item() == pytest.approx(expected, rel=1e-5)


def test_zoedepth_writes_the_same_with_variance():
    """10 * sqrt(var + 0.15 mean²) is factor 10 and lambda 0.85."""
    prediction, depth, valid = random_case()
    d = (prediction.log() - depth.log())[valid]
    expected = 10 * (d.var(correction=0) + 0.15 * d.mean() ** 2).sqrt()
    torch.testing.assert_close(silog(prediction, depth, valid, 0.85, 10.0), expected)


def test_silog_with_lambda_one_ignores_scale():
    prediction, depth, valid = random_case()
    once, thrice = (silog(factor * prediction, depth, valid, 1.0) for factor in (1, 3))
    torch.testing.assert_close(once, thrice)
    assert silog(3 * prediction, depth, valid, 0.5) != silog(prediction, depth, valid, 0.5)


def test_gradient_matching_by_hand():
    d = torch.tensor([[[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]]])
    valid = torch.tensor([[[True, True, True], [True, True, False]]])
    # rows: steps |1 - 0| and |0 - 0| over 2 pairs, columns: 0, 1, 2, 0 of which one pair is unknown, over 3
    rows, columns = (0 + 1) / 2, (1 + 2 + 0) / 3
    loss = gradient_matching(d.exp(), torch.ones_like(d), valid, scales=1)
    assert loss.item() == pytest.approx(rows + columns, rel=1e-5)


def test_gradient_matching_is_zero_for_a_scaled_truth():
    _, depth, valid = random_case()
    assert gradient_matching(2.5 * depth, depth, valid).item() == pytest.approx(0, abs=1e-5)


def test_invariant_loss_ignores_scale_and_shift_of_each_image():
    prediction, depth, valid = random_case()
    moved = torch.stack([prediction[0] * 7 + 3, prediction[1] * 0.2 - 1])
    torch.testing.assert_close(
        scale_and_shift_invariant(moved, depth, valid), scale_and_shift_invariant(prediction, depth, valid)
    )
    perfect = 4 / depth + 2
    assert scale_and_shift_invariant(perfect, depth, valid).item() == pytest.approx(0, abs=1e-5)
    assert scale_and_shift_invariant(-perfect, depth, valid) > 1


def test_invariant_loss_by_hand():
    # medians 2 and 1/2, deviations 2/3 and 1/3 -> standardized (-1.5, 0, 1.5)... of p; truth 1/depth = (1, 1/2, 0.25)
    prediction, depth = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[1.0, 2.0, 4.0]]])
    p, y = (-1.5, 0.0, 1.5), (0.5 / 0.25, 0.0, -0.25 / 0.25)
    expected = sum(abs(a - b) for a, b in zip(p, y)) / 3
    loss = scale_and_shift_invariant(prediction, depth, torch.ones(1, 1, 3, dtype=torch.bool))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("hidden", [float("nan"), float("inf"), 0.0, -5.0])
def test_invalid_pixels_change_neither_loss_nor_gradient(loss, hidden):
    prediction, depth, valid = random_case()
    results = []
    for value in (1.0, hidden):
        p, y = prediction.clone(), depth.clone()
        p[~valid], y[~valid] = value, value
        p.requires_grad_()
        result = loss(p, y, valid)
        result.backward()
        results.append((result.detach(), p.grad))
    torch.testing.assert_close(results[0], results[1])
    assert results[1][1][valid].abs().sum() > 0
    assert (results[1][1][~valid] == 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_stay_finite_at_the_edges(loss):
    depth = torch.full((1, 4, 4), 2.0)
    for prediction, valid in (
        (depth.clone(), torch.ones(1, 4, 4, dtype=torch.bool)),  # perfect: a square root at zero
        (torch.zeros(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)),  # a sigmoid that underflowed
        (depth.clone(), torch.zeros(1, 4, 4, dtype=torch.bool)),  # nothing known
    ):
        prediction.requires_grad_()
        result = loss(prediction, depth, valid)
        result.backward()
        assert torch.isfinite(result)
        assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_those_of_finite_differences(loss):
    prediction, depth, valid = random_case(1)
    prediction = prediction.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss(p, depth.double(), valid), prediction, atol=1e-4)
