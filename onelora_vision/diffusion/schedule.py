"""Gaussian diffusion as in DiT: adding noise, and the hybrid loss of Nichol & Dhariwal (arXiv 2102.09672).

These are pure functions of tensors and the noise schedule's ``betas``. Latents are (N, C, H, W), timesteps (N,) in
0 … T-1.
"""

import math
from collections.abc import Sequence

import torch

from onelora_vision import seeding
from onelora_vision.diffusion.loss_settings import LossSettings


class NoiseSchedule:
    """Closed-form quantities of q(x_t | x_0) and q(x_{t-1} | x_t, x_0), from betas (T,), in float64."""

    def __init__(self, betas: torch.Tensor):
        self.betas = betas.double().cpu()
        self.alphas_cumprod = (1 - self.betas).cumprod(0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])
        # Ho et al. 2020 (arXiv 2006.11239), equations 6 and 7.
        self.posterior_variance = self.betas * (1 - previous) / (1 - self.alphas_cumprod)
        self.posterior_x0 = self.betas * previous.sqrt() / (1 - self.alphas_cumprod)
        self.posterior_xt = (1 - previous) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)
        # The variance at t = 0 is 0; its logarithm is clipped to that at t = 1.
        clipped = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]])
        self.posterior_log_variance = clipped.log()

    def __len__(self) -> int:
        return len(self.betas)

    def at(self, values: torch.Tensor, t: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """``values[t]`` in float32, shaped (N, 1, 1, 1) for broadcasting over ``like``."""
        return values[t.cpu()].to(like.device, torch.float32).reshape(-1, *[1] * (like.ndim - 1))

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε (Ho et al. 2020, equation 4)."""
        return (
            self.at(self.alphas_cumprod.sqrt(), t, x0) * x0 + self.at((1 - self.alphas_cumprod).sqrt(), t, x0) * noise
        )

    def predict_x0(self, xt: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The x_0 from which ``noise`` would give ``xt``."""
        scale = self.alphas_cumprod.rsqrt()
        return self.at(scale, t, xt) * xt - self.at((1 / self.alphas_cumprod - 1).sqrt(), t, xt) * noise

    def posterior_mean(self, x0: torch.Tensor, xt: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.at(self.posterior_x0, t, x0) * x0 + self.at(self.posterior_xt, t, xt) * xt

    def learned_log_variance(self, v: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """Interpolate between log β̃_t and log β_t with the network's ``v`` in [-1, 1] (Nichol & Dhariwal, eq. 15)."""
        low, high = self.at(self.posterior_log_variance, t, v), self.at(self.betas.log(), t, v)
        fraction = (v + 1) / 2
        return fraction * high + (1 - fraction) * low


def training_losses(
    schedule: NoiseSchedule,
    output: torch.Tensor,
    x0: torch.Tensor,
    xt: torch.Tensor,
    noise: torch.Tensor,
    t: torch.Tensor,
    target: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Losses of each sample, (N,): ``mse`` of the predicted noise and, with a learned variance, ``vlb`` in bits.

    ``output`` (N, C or 2C, H, W) is the network's output for ``xt`` at ``t``, and is converted to fp32. In the
    variational bound, the gradient of the mean is stopped, so it trains the variance only (Nichol & Dhariwal, section
    3.1). DiT's loss is mse + vlb. ``target`` (N, C, H, W) is the target of the predicted noise, by default ``noise``.
    """
    channels = x0.shape[1]
    output = output.float()
    predicted = output[:, :channels]
    losses = {"mse": (predicted - (noise if target is None else target)).square().flatten(1).mean(1)}
    if output.shape[1] == 2 * channels:
        losses["vlb"] = _variational_bound(schedule, predicted.detach(), output[:, channels:], x0, xt, t)
    return losses


def min_snr_weights(schedule: NoiseSchedule, t: torch.Tensor, gamma: float) -> torch.Tensor:
    """Loss weights (N,) for samples at ``t``: min(SNR, γ) / SNR (Hang et al. 2023, arXiv 2303.09556).

    SNR = ᾱ_t / (1 - ᾱ_t). This is the form for a network that predicts the noise. Timesteps with little noise, where
    errors are hardly visible, get lower weights.
    """
    ratio = schedule.alphas_cumprod / (1 - schedule.alphas_cumprod)
    return (ratio.clamp(max=gamma) / ratio)[t.cpu()].to(t.device, torch.float32)


def draw_shares(seeds: Sequence[int], stream: int, settings: LossSettings) -> torch.Tensor:
    """Draw fractions (N,) in [0, 1) of the way from an image to noise, each with its own sample's seed.

    ``logit_normal`` (Esser et al. 2024, arXiv 2403.03206, section 3.1) is the distribution of 1 / (1 + exp(-u)) for a
    normal u. It was proposed for times in [0, 1]; for a schedule with timesteps, it applies to t / T.
    """
    if settings.timestep_sampling == "uniform":
        return seeding.rand(seeds, stream)
    normal = settings.logit_mean + settings.logit_std * seeding.randn(seeds, (), stream)
    return normal.sigmoid().clamp(max=1 - 2**-24)  # it may round to 1


def _variational_bound(schedule, predicted, v, x0, xt, t) -> torch.Tensor:
    true_mean = schedule.posterior_mean(x0, xt, t)
    true_log_variance = schedule.at(schedule.posterior_log_variance, t, x0)
    mean = schedule.posterior_mean(schedule.predict_x0(xt, predicted, t), xt, t)
    log_variance = schedule.learned_log_variance(v, t)
    kl = normal_kl(true_mean, true_log_variance, mean, log_variance).flatten(1).mean(1)
    nll = -discretized_gaussian_log_likelihood(x0, mean, 0.5 * log_variance).flatten(1).mean(1)
    return torch.where(t == 0, nll, kl) / math.log(2)


def normal_kl(mean1, log_variance1, mean2, log_variance2) -> torch.Tensor:
    """KL(N1 || N2) for diagonal Gaussians, elementwise, in nats."""
    variance_ratio = torch.exp(log_variance1 - log_variance2)
    distance = (mean1 - mean2).square() * torch.exp(-log_variance2)
    return 0.5 * (log_variance2 - log_variance1 + variance_ratio + distance - 1)


def discretized_gaussian_log_likelihood(x: torch.Tensor, mean: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    """log p(x) of a Gaussian integrated over bins of width 2/255 on [-1, 1], elementwise, in nats.

    See Ho et al. 2020, equation 13. The outermost bins extend to infinity. The normal distribution function is exact
    (erf), while DiT's code uses a tanh approximation.
    """
    inverse = torch.exp(-log_scale)
    upper = torch.special.ndtr((x - mean + 1 / 255) * inverse)
    lower = torch.special.ndtr((x - mean - 1 / 255) * inverse)
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()
