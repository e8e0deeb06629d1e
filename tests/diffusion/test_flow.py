"""Velocity bases against the published formulas, written once more in SiT's own time (t = 1 at the image)."""

import math

import pytest
import torch

from onelora_vision import seeding
from onelora_vision.backbones.dit import DiTBase
from onelora_vision.diffusion.flow import Flow, image_of, integrate, noise_of
from onelora_vision.diffusion.latents import LatentScale
from onelora_vision.diffusion.objective import objective_of
from onelora_vision.diffusion.sampling import denoise, sample_latents
from onelora_vision.diffusion.settings import SAMPLERS, SamplingSettings
from onelora_vision.errors import InputError

SIT, REPA = (
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1, "invert_sigmas": ends_at_image}
    for ends_at_image in (True, False)
)
LABELS, SEEDS, NULL = [1, 7, 4], [10, 11, 12], 1000
velocity_samplers = pytest.mark.parametrize("sampler", SAMPLERS["velocity"])


@pytest.fixture(scope="module")
def base(sit_folder):
    base = DiTBase.load(sit_folder)
    base.model.eval()
    return base


def latents(base, config=SIT, labels=LABELS, seeds=SEEDS, **settings):
    settings = SamplingSettings(**{"steps": 5, "guidance_scale": 2.0, **settings})
    return sample_latents(base.model, config, labels, seeds, settings)


class Reference:
    """Sampling from noise (s = 0) to the image (s = 1): x_s = s x + (1 - s) ε, and u(x, s) = x - ε is the velocity.

    ``network`` gives u. REPA's gives -u of 1 - s.
    """

    def __init__(self, model, is_repa=False, scale=1.0, channels=4, interval=(0.0, 1.0)):
        self.model, self.is_repa, self.scale, self.channels, self.interval = model, is_repa, scale, channels, interval

    @torch.no_grad()
    def network(self, x, s, labels):
        t = torch.full((len(x),), 1 - s if self.is_repa else s)
        output = self.model(x.float(), t, torch.tensor(labels)).sample[:, :4].double()
        return -output if self.is_repa else output

    def velocity(self, x, s, at):
        """Guided if ``at``, where the step starts, is in the interval, which counts from the image."""
        u = self.network(x, s, LABELS)
        low, high = self.interval
        if self.scale == 1 or not low <= 1 - at <= high:
            return u
        free = self.network(x, s, [NULL] * 3)
        guided = free + self.scale * (u - free)
        return torch.cat([guided[:, : self.channels], u[:, self.channels :]], 1)

    def euler(self, x, steps):
        for k in range(steps):
            x = x + self.velocity(x, k / steps, k / steps) / steps
        return x

    def heun(self, x, steps):
        for k in range(steps - 1):
            s, following = k / steps, (k + 1) / steps
            first = self.velocity(x, s, s)
            second = self.velocity(x + first / steps, following, s)
            x = x + (first + second) / 2 / steps
        return x + self.velocity(x, (steps - 1) / steps, (steps - 1) / steps) / steps

    def sde(self, x, steps, noise):
        """dx = (u + w score) ds + sqrt(2 w) dW, w = σ = 1 - s, to s = 0.96; the last step has no noise."""
        ds = 0.96 / (steps - 1)
        for k in range(steps - 1):
            sigma = 1 - k * ds
            x = x + self.drift(x, k * ds) * ds + math.sqrt(2 * sigma * ds) * noise[k]
        return x + self.drift(x, 0.96) * 0.04

    def drift(self, x, s):
        alpha, d_alpha, sigma, d_sigma = s, 1, 1 - s, -1
        u = self.velocity(x, s, s)
        ratio = alpha / d_alpha
        score = (ratio * u - x) / (sigma**2 - ratio * d_sigma * sigma)
        return u + sigma * score


GUIDED = [{}, {"scale": 2.0}, {"scale": 2.0, "channels": 3}, {"scale": 3.0, "interval": (0.3, 0.8)}]


@pytest.mark.parametrize("config", [SIT, REPA], ids=["sit", "repa"])
@pytest.mark.parametrize("guidance", GUIDED, ids=["plain", "guided", "three channels", "interval"])
@velocity_samplers
def test_samples_are_those_of_the_published_formulas(base, config, guidance, sampler):
    reference, steps = Reference(base.model, config is REPA, **guidance), 5
    x = seeding.randn(SEEDS, (4, 8, 8)).double()
    generators = seeding.generators(SEEDS, stream=1)
    draws = [[torch.randn(4, 8, 8, generator=generator) for generator in generators] for _ in range(steps)]
    noise = [torch.stack(draw).double() for draw in draws]
    expected = reference.sde(x, steps, noise) if sampler == "sde" else getattr(reference, sampler)(x, steps)
    settings = {
        "guidance_scale": guidance.get("scale", 1.0),
        "guidance_channels": guidance.get("channels"),
        "guidance_interval": guidance.get("interval", (0.0, 1.0)),
    }
    found = latents(base, config, sampler=sampler, steps=steps, **settings)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", [SIT, REPA], ids=["sit", "repa"])
def test_the_loss_is_the_published_one(base, config):
    flow = objective_of(config)
    x0, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([0.0, 0.3, 0.9]), torch.tensor(LABELS)
    xt = flow.noised(x0, noise, flow.times(t))
    s = 1 - t[:, None, None, None]
    torch.testing.assert_close(xt, s * x0 + (1 - s) * noise)
    with torch.no_grad():
        output = base.model(xt, flow.timestep(t), y).sample
        if config is SIT:
            target, answer = x0 - noise, base.model(xt, 1 - t, y).sample
        else:
            target, answer = noise - x0, base.model(xt, t, y).sample
    expected = (answer[:, :4] - target).square().mean((1, 2, 3))
    assert output.shape[1] == 8  # the second half is left out
    losses = flow.losses(output, x0, xt, noise, t)
    assert set(losses) == {"mse"}
    torch.testing.assert_close(losses["mse"], expected)


def gaussian(mean, std):
    """The velocity of data N(mean, std²): E[ε - x | x_t], by the rules for jointly normal values."""

    def velocity(x, t, is_guided):
        variance = (1 - t) ** 2 * std**2 + t**2
        centred = x - (1 - t) * mean
        return t / variance * centred - (mean + (1 - t) * std**2 / variance * centred)

    return velocity


@pytest.mark.parametrize("t", [0.05, 0.5, 1.0])
def test_image_noise_and_score_of_gaussian_data(t):
    mean, std, x = 0.7, 0.5, torch.linspace(-2, 2, 9)
    v, variance = gaussian(mean, std)(x, t, False), (1 - t) ** 2 * std**2 + t**2
    torch.testing.assert_close(noise_of(x, v, t) - image_of(x, v, t), v)
    torch.testing.assert_close(-noise_of(x, v, t) / t, -(x - (1 - t) * mean) / variance)


@velocity_samplers
def test_the_exact_velocity_of_gaussian_data_draws_gaussian_data(sampler):
    seeds, settings = range(32), SamplingSettings(sampler, steps=250)
    x = seeding.randn(seeds, (1, 16, 16))
    for x, clean in integrate(gaussian(0.7, 0.5), x, settings, seeding.generators(seeds, 1)):  # noqa: B007, B020
        pass
    assert x.mean().item() == pytest.approx(0.7, abs=0.02)
    assert x.std().item() == pytest.approx(0.5, abs=0.02)


def test_heun_is_of_second_order_and_euler_of_first():
    """On an ODE whose end is known: x_t keeps its quantile."""
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[None]
    errors = {}
    for sampler in ("euler", "heun"):
        for steps in (20, 40):
            *_, (end, _) = integrate(gaussian(0.7, 0.5), x, SamplingSettings(sampler, steps), [])
            errors[sampler, steps] = (end - (0.7 + 0.5 * x)).abs().max().item()
    assert errors["euler", 20] / errors["euler", 40] == pytest.approx(2, abs=0.3)
    assert errors["heun", 20] / errors["heun", 40] > 3
    assert errors["heun", 20] < 0.2 * errors["euler", 20]


@velocity_samplers
def test_an_image_depends_on_its_own_seed_and_class_alone(base, sampler):
    together, alone = latents(base, sampler=sampler), latents(base, labels=[7], seeds=[11], sampler=sampler)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    assert not torch.allclose(latents(base, labels=[2], seeds=[11], sampler=sampler), alone, atol=1e-4)


@velocity_samplers
def test_each_step_hands_out_a_preview(base, sampler):
    steps = list(denoise(base.model, SIT, [1], [0], SamplingSettings(sampler, steps=3, guidance_scale=2.0)))
    assert [step.number for step in steps] == [0, 1, 2]
    assert torch.equal(steps[-1].x, latents(base, labels=[1], seeds=[0], sampler=sampler, steps=3))
    assert not torch.allclose(steps[0].clean, steps[0].x, atol=1e-2)
    if sampler != "sde":  # whose last step is coarser than the prediction
        torch.testing.assert_close(steps[-1].clean, steps[-1].x)
    one = latents(base, labels=[1], seeds=[0], sampler=sampler, steps=1)
    assert one.isfinite().all()


def test_a_base_takes_the_samplers_of_its_objective(base, dit_folder):
    assert torch.equal(latents(base), latents(base, sampler="heun"))
    dit = DiTBase.load(dit_folder)
    assert torch.equal(latents(dit, dit.schedule), latents(dit, dit.schedule, sampler="dpm++"))
    with pytest.raises(
        InputError, match="'ddim' is not for this base, which predicts velocity: choose heun, euler, sde"
    ):
        latents(base, sampler="ddim")
    with pytest.raises(InputError, match="'heun' is not for this base, which predicts epsilon: choose dpm"):
        latents(dit, dit.schedule, sampler="heun")


def test_the_scheduler_says_what_a_base_predicts(base, dit_folder):
    assert base.objective == Flow(data_at=1) and str(base.objective) == "velocity, image at t=1"
    assert objective_of(REPA) == Flow(data_at=0) and str(objective_of(REPA)) == "velocity, image at t=0"
    assert str(Flow(scale=1000.0)) == "velocity, image at t=0 times 1000" and Flow(1, 1000.0).timestep(0.25) == 750
    dit = DiTBase.load(dit_folder)
    assert str(dit.objective) == "epsilon" and len(dit.objective.schedule) == 1000
    for change, message in {
        ("shift", 3.0): "shifts the time",
        ("use_dynamic_shifting", True): "shifts the time",
        ("_class_name", "EDMEulerScheduler"): "EDMEulerScheduler, is neither",
    }.items():
        with pytest.raises(InputError, match=message):
            objective_of({**SIT, **dict([change])})
    with pytest.raises(InputError, match="prediction_type 'v_prediction'"):
        objective_of({**dit.schedule, "prediction_type": "v_prediction"})


def test_latents_have_the_scale_that_the_autoencoder_says(base):
    z = torch.randn(2, 4, 3, 3)
    scale = LatentScale.of(base.vae)
    assert torch.equal(scale.normalize(z), z * 0.18215) and torch.equal(scale.restore(z), z / 0.18215)
    mean, std = [0.5, -1.0, 0.0, 2.0], [1.0, 2.0, 0.5, 4.0]

    class Normalising(torch.nn.Module):
        config = type("Config", (), {"latents_mean": mean, "latents_std": std, "scaling_factor": 2.0})

    scale = LatentScale.of(Normalising())
    expected = torch.stack([2 * (z[:, c] - mean[c]) / std[c] for c in range(4)], 1)
    torch.testing.assert_close(scale.normalize(z), expected)
    torch.testing.assert_close(scale.restore(expected), z)
