import math

import pytest
import torch

from onelora_vision import seeding
from onelora_vision.diffusion.loss_settings import LossSettings
from onelora_vision.diffusion.schedule import (
    NoiseSchedule,
    discretized_gaussian_log_likelihood,
    draw_shares,
    min_snr_weights,
    normal_kl,
    training_losses,
)


@pytest.fixture
def schedule():
    return NoiseSchedule(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def test_noising_and_its_inverse(schedule):
    x0, noise, t = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8), torch.tensor([0, 10, 300, 700, 999])
    xt = schedule.add_noise(x0, noise, t)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t].float()
    expected = alpha_bar.sqrt()[:, None, None, None] * x0 + (1 - alpha_bar).sqrt()[:, None, None, None] * noise
    torch.testing.assert_close(xt, expected)
    torch.testing.assert_close(schedule.predict_x0(xt, noise, t), x0, rtol=1e-3, atol=1e-3)


def test_posterior_is_that_of_bayes_rule(schedule):
    """q(x_{t-1} | x_t, x_0) ∝ q(x_t | x_{t-1}) q(x_{t-1} | x_0): a product of two Gaussians, worked out directly."""
    t = 400
    beta, previous = schedule.betas[t], schedule.alphas_cumprod[t - 1]
    precision = (1 - beta) / beta + 1 / (1 - previous)
    assert schedule.posterior_variance[t] == pytest.approx(float(1 / precision), rel=1e-9)
    x0, xt = 0.3, -1.2
    mean = (xt * (1 - beta).sqrt() / beta + x0 * previous.sqrt() / (1 - previous)) / precision
    got = schedule.posterior_mean(torch.full((1, 1, 1, 1), x0), torch.full((1, 1, 1, 1), xt), torch.tensor([t]))
    assert got.item() == pytest.approx(float(mean), rel=1e-5)


def test_learned_variance_spans_posterior_to_beta(schedule):
    t = torch.tensor([500])
    low, middle, high = (
        schedule.learned_log_variance(torch.full((1, 1, 1, 1), v), t).item() for v in (-1.0, 0.0, 1.0)
    )
    assert low == pytest.approx(math.log(schedule.posterior_variance[500]), rel=1e-6)
    assert high == pytest.approx(math.log(schedule.betas[500]), rel=1e-6)
    assert middle == pytest.approx((low + high) / 2, rel=1e-6)


def test_kl_and_likelihood_against_closed_forms():
    zero = torch.zeros(1)
    assert normal_kl(zero, zero, zero, zero).item() == 0
    expected = math.log(2) + (1 + 0.25) / 8 - 0.5  # KL(N(0,1) || N(0.5, 4))
    assert normal_kl(zero, zero, zero + 0.5, torch.tensor([math.log(4)])).item() == pytest.approx(expected, rel=1e-6)
    bins = torch.linspace(-1, 1, 256)
    total = discretized_gaussian_log_likelihood(bins, torch.full((256,), 0.2), torch.full((256,), -1.0)).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-4)  # 256 bins cover the line


def test_a_perfect_network_has_zero_loss_and_the_bound_trains_the_variance_only(schedule):
    x0, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([1, 300, 999])
    xt = schedule.add_noise(x0, noise, t)
    perfect = torch.cat([noise, torch.full_like(noise, -1)], dim=1)
    losses = training_losses(schedule, perfect, x0, xt, noise, t)
    assert losses["mse"].abs().max() == 0
    assert losses["vlb"].abs().max() < 1e-3
    output = perfect.clone().requires_grad_()
    training_losses(schedule, output + 0.1, x0, xt, noise, t)["vlb"].sum().backward()
    assert output.grad[:, :4].abs().max() == 0
    assert output.grad[:, 4:].abs().min() > 0


def test_without_learned_variance_there_is_no_bound(schedule):
    noise = torch.randn(2, 4, 8, 8)
    losses = training_losses(schedule, noise + 1, noise, noise, noise, torch.tensor([5, 6]))
    assert set(losses) == {"mse"}
    torch.testing.assert_close(losses["mse"], torch.ones(2))


def test_the_noise_half_is_compared_with_a_target_and_the_bound_is_not(schedule):
    x0, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([200, 900])
    xt = schedule.add_noise(x0, noise, t)
    output = torch.cat([noise, torch.zeros_like(noise)], 1)
    plain = training_losses(schedule, output, x0, xt, noise, t)
    aimed = training_losses(schedule, output, x0, xt, noise, t, noise + 2)
    torch.testing.assert_close(aimed["mse"], torch.full((2,), 4.0))
    assert torch.equal(aimed["vlb"], plain["vlb"])


def test_min_snr_weights_are_the_papers_for_predicted_noise(schedule):
    """min(SNR, 5) / SNR: 1 where the noise outweighs the image five times less, and SNR's inverse before."""
    t = torch.tensor([0, 100, 400, 999])
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t]
    ratio = alpha_bar / (1 - alpha_bar)
    weights = min_snr_weights(schedule, t, 5.0)
    assert weights.dtype == torch.float32 and ratio[1] > 5 > ratio[2]
    torch.testing.assert_close(weights, torch.minimum(ratio, torch.tensor(5.0)).div(ratio).float())
    assert weights[0] == pytest.approx(5e-4, rel=1e-3) and torch.equal(weights[2:], torch.ones(2))
    assert torch.equal(min_snr_weights(schedule, t, 1e9), torch.ones(4))


def test_timesteps_are_drawn_from_each_samples_own_seed():
    seeds = list(range(4000))
    for settings in (LossSettings(), LossSettings(timestep_sampling="logit_normal")):
        t = (draw_shares(seeds, 12, settings) * 1000).long()
        assert t.dtype == torch.int64 and t.min() >= 0 and t.max() <= 999
        assert torch.equal((draw_shares(seeds[100:103], 12, settings) * 1000).long(), t[100:103])
    assert torch.equal(draw_shares(seeds, 12, LossSettings()), seeding.rand(seeds, 12))


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.5)])
def test_logit_normal_timesteps_have_normal_logits(mean, std):
    settings = LossSettings(timestep_sampling="logit_normal", logit_mean=mean, logit_std=std)
    logits = draw_shares(range(4000), 12, settings).logit()
    assert logits.mean().item() == pytest.approx(mean, abs=0.05)
    assert logits.std().item() == pytest.approx(std, rel=0.05)
    extreme = LossSettings(timestep_sampling="logit_normal", logit_mean=100.0)
    assert 0.999 < draw_shares([1], 12, extreme) < 1
