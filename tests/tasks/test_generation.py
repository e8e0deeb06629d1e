import pytest
import torch

from onelora_vision import seeding
from onelora_vision.backbones.dit import DiTBase, dit_adaptation
from onelora_vision.methods.apply import apply_method
from onelora_vision.tasks.generation import DROPOUT, GenerationTask


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
