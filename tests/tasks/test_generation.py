import pytest
import torch
from accelerate import Accelerator

from onelora_vision import seeding
from onelora_vision.backbones.dit import DiTBase, dit_adaptation
from onelora_vision.data.classes.dataset import ClassImageDataset
from onelora_vision.data.classes.formats import open_class_images
from onelora_vision.data.generation import SquareCrop
from onelora_vision.data.latents import posterior
from onelora_vision.diffusion.guidance import base_alone
from onelora_vision.diffusion.loss_settings import LossSettings
from onelora_vision.diffusion.schedule import min_snr_weights
from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.methods.apply import apply_method
from onelora_vision.metrics.generative import EmbeddedFeatures
from onelora_vision.tasks.generation import (
    DROPOUT,
    NOISE,
    TIMESTEP,
    GenerationTask,
    LazyLatents,
    generator_retention,
)
from onelora_vision.tasks.sample_evaluation import ImageSampler, examples


@pytest.fixture
def task(dit_folder):
    base = DiTBase.load(dit_folder)
    base.model.set_classes(["a", "b", "c"], generator=torch.Generator().manual_seed(0))
    model = apply_method(base.model, "onelora", dit_adaptation(base.model))
    return GenerationTask(model.train(), base.vae, dict(base.scheduler.config), class_dropout_prob=0.5)


def batch(seeds):
    images = torch.rand(len(seeds), 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"image": images, "label": torch.arange(len(seeds)) % 3, "seed": torch.tensor(seeds)}


def test_loss_is_the_hybrid_and_trains_the_adapter(task):
    output = task.forward(batch([1, 2, 3, 4]))
    assert set(output) == {"loss", "mse", "vlb"}
    torch.testing.assert_close(output["loss"].detach(), output["mse"] + output["vlb"])
    output["loss"].backward()
    assert all(p.grad is None for p in task.vae.parameters())
    gradients = [p.grad for p in task.model.parameters() if p.requires_grad]
    assert len(gradients) == 17 and all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_loss_of_a_sample_depends_on_its_own_seed_alone(task):
    both = batch([5, 6])
    halves = [{key: value[i : i + 1] for key, value in both.items()} for i in (0, 1)]
    with torch.no_grad():
        together = task.forward(both)["loss"]
        apart = sum(task.forward(half)["loss"] for half in halves) / 2
        again = task.forward(both)["loss"]
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-6)
    assert torch.equal(together, again)


def test_one_label_mask_per_sample(task, monkeypatch):
    seen = []
    embedder = task.model.get_base_model().conditioning.class_embedder
    original = embedder.forward
    monkeypatch.setattr(embedder, "forward", lambda labels: seen.append(labels) or original(labels))
    seeds = list(range(64))
    task.forward(batch(seeds))
    (labels,) = seen  # the embedder is asked once per forward
    dropped = seeding.rand(seeds, DROPOUT) < 0.5
    assert torch.equal(labels == task.null_class, dropped) and 16 < int(dropped.sum()) < 48
    assert torch.equal(labels[~dropped], (torch.arange(64) % 3)[~dropped])


def test_latents_are_drawn_from_the_posterior_and_scaled(task):
    images = torch.rand(2, 3, 16, 16)
    first, second = (task.latents({"image": images, "seed": torch.tensor(seeds)}) for seeds in ([1, 2], [3, 2]))
    assert first.shape == (2, 4, 8, 8)
    assert not torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    posterior = task.vae.encode(images * 2 - 1).latent_dist
    standard = (first / 0.18215 - posterior.mean) / posterior.std
    torch.testing.assert_close(standard, seeding.randn([1, 2], (4, 8, 8), 10), rtol=1e-3, atol=1e-3)


def test_the_validation_loss_keeps_the_classes_and_spreads_the_timesteps(task, monkeypatch):
    seen, times = [], []
    embedder = task.model.get_base_model().conditioning.class_embedder
    original, noised = embedder.forward, task.objective.noised
    monkeypatch.setattr(embedder, "forward", lambda labels: seen.append(labels) or original(labels))
    monkeypatch.setattr(task.objective, "noised", lambda x0, noise, t: times.append(t) or noised(x0, noise, t))
    fixed = batch(list(range(16)))
    with torch.no_grad():
        first, second = task.validation_loss(fixed), task.validation_loss(fixed)
    assert torch.equal(first, second) and first.isfinite()
    assert torch.equal(seen[0], torch.arange(16) % 3)
    assert times[0].diff().unique().numel() <= 2 and times[0][0] < 50 and times[0][-1] > 950


def parts_of_the_loss(task, given):
    """Noised latents, noise, timesteps, the labels that are trained, and the outputs of the model and of its base."""
    seeds = given["seed"].tolist()
    x0, noise = task.latents(given), seeding.randn(seeds, (4, 8, 8), NOISE)
    t = (seeding.rand(seeds, TIMESTEP) * 1000).long()
    labels = torch.where(seeding.rand(seeds, DROPOUT) < 0.5, task.null_class, given["label"])
    xt = task.objective.schedule.add_noise(x0, noise, t)
    with torch.no_grad():
        output = task.model(xt, timestep=t, class_labels=labels).sample
        with base_alone(task.model):
            base = task.model(xt, timestep=t, class_labels=torch.full_like(labels, task.null_class)).sample
    return noise, t, labels, output[:, :4], base[:, :4]


def shaken(task):
    for number, parameter in enumerate(p for p in task.model.parameters() if p.requires_grad):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        parameter.data += 0.1 * noise
    return task


def test_distillation_guides_the_target_of_samples_with_a_class_in_the_interval(task):
    given = batch(list(range(12)))
    noise, t, labels, output, base = parts_of_the_loss(shaken(task), given)
    plain = task.forward(given)
    torch.testing.assert_close(plain["mse"], (output - noise).square().mean())
    task.loss = LossSettings(guidance_distillation=1.5, guidance_interval=(0.0, 0.6))
    guided = (labels != task.null_class) & (t < 600)
    assert 2 < guided.sum() < 10
    target = noise + 0.5 * guided.view(-1, 1, 1, 1) * (output - base)
    losses = task.forward(given)
    torch.testing.assert_close(losses["mse"], (output - target).square().mean())
    assert torch.equal(losses["vlb"], plain["vlb"])
    losses["loss"].backward()
    gradients = [p.grad for p in task.model.parameters() if p.requires_grad]
    assert len(gradients) == 17 and all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_min_snr_weighs_the_noise_and_leaves_the_bound_alone(task):
    given = batch(list(range(12)))
    noise, t, _, output, _ = parts_of_the_loss(shaken(task), given)
    plain = task.forward(given)
    task.loss = LossSettings(snr_gamma=5.0)
    losses = task.forward(given)
    weighted = (output - noise).square().flatten(1).mean(1) * min_snr_weights(task.objective.schedule, t, 5.0)
    torch.testing.assert_close(losses["mse"], weighted.mean())
    assert losses["mse"] < plain["mse"] and torch.equal(losses["vlb"], plain["vlb"])


def test_the_validation_loss_knows_no_weights_of_timesteps(task):
    given = batch(list(range(8)))
    with torch.no_grad():
        plain = shaken(task).validation_loss(given)
        task.loss = LossSettings(5.0, "logit_normal", 1.0, 1.0)
        assert torch.equal(task.validation_loss(given), plain)
        assert not torch.equal(task.forward(given)["loss"], plain)


def test_the_validation_loss_of_distillation_is_that_of_the_prediction_without_the_guidance(task):
    given = batch(list(range(8)))
    seeds, t = given["seed"].tolist(), ((torch.arange(8) + 0.5) / 8 * 1000).long()
    noise = seeding.randn(seeds, (4, 8, 8), NOISE)
    task.loss = LossSettings(guidance_distillation=1.5)
    with torch.no_grad():
        xt = shaken(task).objective.schedule.add_noise(task.latents(given), noise, t)
        output = task.model(xt, timestep=t, class_labels=given["label"]).sample[:, :4]
        with base_alone(task.model):
            base = task.model(xt, timestep=t, class_labels=torch.full((8,), task.null_class)).sample[:, :4]
        without = 0.5 * output + 0.5 * base  # ε_θ = 2 (without) - ε_base, guidance from the base at the scale 2
        losses = task._losses(given, t, given["label"], LossSettings())
        expected = (without - noise).square().mean() + losses["vlb"]
        torch.testing.assert_close(task.validation_loss(given), expected)


def test_a_velocity_base_is_trained_on_its_own_loss(sit_folder):
    base = DiTBase.load(sit_folder)
    base.model.set_classes(["a", "b", "c"], generator=torch.Generator().manual_seed(0))
    task = GenerationTask(
        apply_method(base.model, "onelora", dit_adaptation(base.model)).train(), base.vae, base.schedule
    )
    output = task.forward(batch([1, 2, 3, 4]))
    assert set(output) == {"loss", "mse"} and task.identity()["objective"] == "velocity, image at t=1"
    output["loss"].backward()
    b = dict(task.model.named_parameters())["base_model.model.proj_out_2.onelora_b.default"].grad.view(2, 2, 8)
    assert b[..., :4].any() and not b[..., 4:].any()  # of 2C channels the second half trains nothing
    with torch.no_grad():
        first, second = task.validation_loss(batch([1, 2])), task.validation_loss(batch([1, 2]))
    assert torch.equal(first, second) and first.isfinite()


def test_a_velocity_base_is_trained_towards_guidance_by_its_velocity(sit_folder):
    base = DiTBase.load(sit_folder)
    base.model.set_classes(["a", "b", "c"], generator=torch.Generator().manual_seed(0))
    model = apply_method(base.model, "onelora", dit_adaptation(base.model)).train()
    task = shaken(GenerationTask(model, base.vae, base.schedule, 0.0, loss=LossSettings(guidance_distillation=1.5)))
    given = batch(list(range(6)))
    seeds = given["seed"].tolist()
    x0, noise, t = task.latents(given), seeding.randn(seeds, (4, 8, 8), NOISE), seeding.rand(seeds, TIMESTEP)
    share = t.view(-1, 1, 1, 1)
    xt = (1 - share) * x0 + share * noise
    with torch.no_grad():
        ours = -model(xt, timestep=1 - t, class_labels=given["label"]).sample[:, :4]  # this folder's image is at t = 1
        with base_alone(model):
            null = torch.full_like(given["label"], task.null_class)
            theirs = -model(xt, timestep=1 - t, class_labels=null).sample[:, :4]
    expected = (ours - (noise - x0 + 0.5 * (ours - theirs))).square().mean()
    torch.testing.assert_close(task.forward(given)["mse"].detach(), expected)


class Pictures(torch.utils.data.Dataset):
    """Six images of three classes, the first class of one image."""

    labels = [0, 1, 1, 2, 2, 2]

    def __len__(self):
        return 6

    def __getitems__(self, refs):
        images = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return [{"image": images[int(ref)], "label": self.labels[int(ref)], "seed": int(ref)} for ref in refs]


def test_images_are_encoded_when_they_are_read(task):
    encoded = LazyLatents(Pictures(), task.vae, torch.device("cpu"))
    samples = encoded.__getitems__([4, 1])
    mean, std = posterior(task.vae, torch.stack([sample["image"] for sample in Pictures().__getitems__([4, 1])]))
    assert len(encoded) == 6 and [sample["label"] for sample in samples] == [2, 1] and "image" not in samples[0]
    torch.testing.assert_close(torch.stack([sample["mean"] for sample in samples]), mean)
    torch.testing.assert_close(torch.stack([sample["std"] for sample in samples]), std)
    assert encoded[3]["seed"] == 3


def test_examples_are_of_the_classes_asked_for_and_blank_where_there_are_too_few():
    images = torch.stack([sample["image"] for sample in Pictures().__getitems__(range(6))])
    found = examples(Pictures(), [2, 0], 2)
    assert torch.equal(found[0], images[[3, 4]]) and torch.equal(found[1, 0], images[0])
    assert found[1, 1].isnan().all()


@pytest.mark.parametrize(
    ("method", "count", "classes", "guidance_base"),
    [("onelora", 36, 36, False), ("head", 12, 12, False), ("full", 12, 12, True)],
)
def test_samples_of_the_base_s_own_classes_are_measured_with_its_own_label_table(
    method, count, classes, guidance_base, fresh_accelerate
):
    base = DiTBase.load("embedded")
    own = base.own_parts()
    base.fit(["3", "new"])
    model = apply_method(base.model, method, base.adaptation())
    with torch.no_grad():
        model.label_table.weight.zero_()  # of the new classes
    settings = SamplingSettings(steps=4, guidance_scale=4.0, guidance_base=guidance_base)
    sampler = ImageSampler(base.vae, dict(base.scheduler.config), settings)
    data = ClassImageDataset(open_class_images("glyphs", split="test").drawn(72), SquareCrop(32))
    retention = generator_retention(base, own, model, sampler, EmbeddedFeatures(), data, count)
    assert f"{count} samples of {classes} of the base's own classes, dpm++, 4 steps" in retention.protocol
    assert ("guidance 4 from the base" in retention.protocol) == guidance_base
    metrics = retention(Accelerator(cpu=True))
    assert metrics.keys() == {"retention_fd_embedded", "retention_class_accuracy"}
    assert metrics["retention_class_accuracy"] > 0.8 and model.null_class == 2
    assert retention(Accelerator(cpu=True)) == metrics
