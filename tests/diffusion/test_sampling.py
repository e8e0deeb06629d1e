import copy
import dataclasses

import pytest
import torch

from onelora_vision.backbones.dit import DiTBase, dit_adaptation
from onelora_vision.diffusion.sampling import denoise, iter_samples, sample, sample_latents
from onelora_vision.diffusion.schedule import NoiseSchedule
from onelora_vision.diffusion.schedulers import make_scheduler, set_timesteps
from onelora_vision.diffusion.settings import SAMPLERS, SamplingSettings
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method


@pytest.fixture(scope="module")
def base(dit_folder):
    base = DiTBase.load(dit_folder)
    base.model.eval()
    torch.manual_seed(3)
    for parameter in base.model.parameters():  # adaLN-Zero's zero start would make every class alike
        parameter.data += 0.05 * torch.randn_like(parameter)
    return base


def latents(base, labels, seeds, **settings):
    settings = SamplingSettings(**{"steps": 4, "guidance_scale": 2.0, **settings})
    return sample_latents(base.model, dict(base.scheduler.config), labels, seeds, settings)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "ddpm"])
def test_an_image_depends_on_its_own_seed_and_class_alone(base, sampler):
    together = latents(base, [1, 2, 3], [10, 11, 12], sampler=sampler)
    alone = latents(base, [2], [11], sampler=sampler)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    other_class = latents(base, [7], [11], sampler=sampler)
    assert not torch.allclose(other_class, alone, atol=1e-4)


def test_guidance_uses_the_last_row_as_null_class(base):
    weight = base.model.label_table.weight
    guided = latents(base, [1], [0])
    with torch.no_grad():
        weight[-1] += 5
        assert not torch.allclose(latents(base, [1], [0]), guided, atol=1e-4)
        assert torch.equal(latents(base, [1], [0], guidance_scale=1.0), latents(base, [1], [0], guidance_scale=1.0))
        unguided = latents(base, [1], [0], guidance_scale=1.0)
        weight[-1] -= 5
    torch.testing.assert_close(latents(base, [1], [0], guidance_scale=1.0), unguided)


def test_guidance_channels_and_interval(base):
    everything, three = latents(base, [1], [0]), latents(base, [1], [0], guidance_channels=3)
    assert not torch.allclose(everything, three, atol=1e-4)
    none, empty = latents(base, [1], [0], guidance_scale=1.0), latents(base, [1], [0], guidance_interval=(0.9995, 1.0))
    torch.testing.assert_close(none, empty)


@pytest.mark.parametrize("method", ["onelora", "lora"])
def test_guidance_from_the_base_is_that_of_two_models(base, method):
    """Step by step as by the adapted model and the base next to each other, within the interval and outside of it."""
    adapted = apply_method(copy.deepcopy(base.model), method, dit_adaptation(base.model)).eval()
    for number, parameter in enumerate(p for p in adapted.parameters() if p.requires_grad):
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    config = dict(base.scheduler.config)
    settings = SamplingSettings("ddim", 4, 2.5, guidance_interval=(0.0, 0.7), guidance_base=True)
    found = sample_latents(adapted, config, [1, 2], [10, 11], settings)
    torch.testing.assert_close(
        found, sample_latents(adapted, config, [1, 2], [10, 11], settings, base.model), rtol=1e-3, atol=1e-3
    )
    own = sample_latents(adapted, config, [1, 2], [10, 11], dataclasses.replace(settings, guidance_base=False))
    assert not torch.allclose(found, own, atol=1e-2)
    with pytest.raises(InputError, match="no adapter that can be switched off"):
        sample_latents(base.model, config, [1], [10], settings)


def test_ddim_step_is_the_closed_form(base):
    """One step from the last timestep: x_0 from the predicted noise (Song et al. 2020, eq. 12, η = 0, ᾱ_prev = 1)."""
    x = latents(base, [4], [5], sampler="ddim", steps=1, guidance_scale=1.0)
    from onelora_vision import seeding

    noise = seeding.randn([5], (4, 8, 8))
    scheduler = make_scheduler("ddim", dict(base.scheduler.config), True)
    set_timesteps(scheduler, 1)
    t = scheduler.timesteps[0]
    assert t == 999
    with torch.no_grad():
        eps = base.model(noise, t.expand(1), torch.tensor([4])).sample[:, :4]
    alpha_bar = scheduler.alphas_cumprod[t]
    torch.testing.assert_close(x, (noise - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt())


LINEAR = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


@pytest.mark.parametrize("steps", [1000, 250, 30])
def test_ddpm_steps_are_the_posterior_of_the_respaced_schedule(steps):
    """Mean and learned variance against the closed forms for β'_i = 1 - ᾱ_{t_i} / ᾱ_{t_{i-1}} (Nichol & Dhariwal, 4)."""
    scheduler = make_scheduler("ddpm", LINEAR, learned_variance=True)
    set_timesteps(scheduler, steps)
    alphas = NoiseSchedule(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).alphas_cumprod
    kept = scheduler.timesteps.flip(0)
    assert len(kept) == steps and kept[0] == 0 and kept[-1] == 999
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas[kept][:-1]])
    spaced = NoiseSchedule(1 - alphas[kept] / before)
    generator = torch.Generator().manual_seed(0)
    for index in (0, 1, steps // 2, steps - 1):
        x, noise, v = torch.randn(3, 1, 4, 2, 2, generator=generator)
        v, at = v.tanh(), torch.tensor([index])
        draw = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
        output = torch.cat([noise, v], 1)
        result = scheduler.step(output, kept[index], x, generator=torch.Generator().manual_seed(7)).prev_sample
        mean = spaced.posterior_mean(spaced.predict_x0(x, noise, at), x, at)
        deviation = (0.5 * spaced.learned_log_variance(v, at)).exp() if index else torch.zeros(())
        torch.testing.assert_close(result, mean + deviation * draw, rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [50, 30])
def test_ddim_lands_where_it_goes_on(steps):
    """With the true noise as the prediction, every step lies on the one path from x_T to x_0, whatever the spacing."""
    scheduler = make_scheduler("ddim", LINEAR, learned_variance=False)
    set_timesteps(scheduler, steps)
    x0, noise = torch.randn(2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    path = [
        scheduler.alphas_cumprod[t].sqrt() * x0 + (1 - scheduler.alphas_cumprod[t]).sqrt() * noise
        for t in scheduler.timesteps
    ]
    for t, here, there in zip(scheduler.timesteps, path, [*path[1:], x0]):
        result = scheduler.step(noise, t, here)
        torch.testing.assert_close(result.prev_sample, there, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(result.pred_original_sample, x0, rtol=1e-2, atol=1e-2)


def test_ddpm_uses_the_learned_variance(base):
    scheduler = make_scheduler("ddpm", dict(base.scheduler.config), learned_variance=True)
    assert scheduler.config.variance_type == "learned_range"
    before = latents(base, [1], [0], sampler="ddpm")
    with torch.no_grad():
        bias = base.model.proj_out_2.bias.view(2, 2, 8)
        bias[..., 4:] += 1
        after = latents(base, [1], [0], sampler="ddpm")
        bias[..., 4:] -= 1
    assert not torch.allclose(before, after, atol=1e-4)


def test_images_come_in_range_and_batched(base):
    arguments = (base.model, base.vae, dict(base.scheduler.config), [1, 2, 3], [0, 1, 2])
    images = sample(*arguments, SamplingSettings(steps=2), batch_size=2)
    assert images.shape == (3, 3, 16, 16) and images.min() >= 0 and images.max() <= 1
    base.model.train()
    batches = iter_samples(*arguments, SamplingSettings(steps=2), batch_size=2)
    first = next(batches)
    assert not base.model.training and len(first) == 2
    assert torch.equal(torch.cat([first, *batches]), images) and base.model.training


@pytest.mark.parametrize("sampler", SAMPLERS["epsilon"])
def test_each_step_hands_out_a_preview_that_ends_in_the_sample(base, sampler):
    settings = SamplingSettings(sampler=sampler, steps=3, guidance_scale=2.0)
    steps = list(denoise(base.model, dict(base.scheduler.config), [1], [0], settings))
    assert [step.number for step in steps] == [0, 1, 2]
    assert torch.equal(steps[-1].x, latents(base, [1], [0], sampler=sampler, steps=3))
    # at the first step the latents are still noise, their clean prediction is not
    assert not torch.allclose(steps[0].clean, steps[0].x, atol=1e-2)
    torch.testing.assert_close(steps[-1].clean, steps[-1].x, rtol=1e-3, atol=1e-3)


def test_bad_settings_are_named(base):
    with pytest.raises(InputError, match="did you mean 'ddim'"):
        SamplingSettings(sampler="dimm")
    with pytest.raises(InputError, match="steps=0"):
        SamplingSettings(steps=0)
    with pytest.raises(InputError, match="1000 timesteps"):
        latents(base, [0], [0], steps=1001)
    with pytest.raises(InputError, match="guidance_channels=0"):
        SamplingSettings(guidance_channels=0)
    with pytest.raises(InputError, match="guidance_interval"):
        dataclasses.replace(SamplingSettings(), guidance_interval=(0.8, 0.2))
    with pytest.raises(InputError, match="outside the model's classes 0 … 999"):
        sample(base.model, base.vae, dict(base.scheduler.config), [1001], [0])
