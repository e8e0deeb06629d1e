"""The validation loss is a curve of its own, and the training does not know of it."""

import random

import numpy as np
import pytest
import torch
from tiny_run import NoisyColors, TinyConfig, TinyTask, run, tiny_model

from onelora_vision.training import validation_loss
from onelora_vision.training.loop import prepare_loop
from onelora_vision.training.optim import total_steps
from onelora_vision.training.setup import start_run
from onelora_vision.training.validation_loss import FEWEST, FEWEST_POINTS, MOST, SHARE, STEP_COST, WatchedSamples, plan
from train_scripts import train_classification, train_depth, train_dit, train_language

SETTINGS = {"dropout": 0.2, "use_ema": True, "gradient_accumulation_steps": 2, "train_batch_size": 3}


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def job(folder, **settings):
    return run(TinyConfig(output_dir=str(folder), **{**SETTINGS, **settings}))


def test_the_training_is_the_same_bits_with_and_without_it(tmp_path):
    without, with_curve = job(tmp_path / "a"), job(tmp_path / "b", validation_loss_steps=1)
    assert without[0].history == with_curve[0].history and without[2] == with_curve[2]
    assert all(torch.equal(tensor, with_curve[1][name]) for name, tensor in without[1].items())
    assert without[0].validation_losses == [] and len(with_curve[0].validation_losses) == 7


def test_the_curve_falls_on_the_same_samples_whatever_the_seed(tmp_path):
    first, second = (
        job(tmp_path / str(seed), validation_loss_steps=4, seed=seed, learning_rate=0.02)[0].validation_losses
        for seed in (0, 1)
    )
    assert [step for step, _ in first] == [0, 4, 6]  # the start, each fourth step and the end
    assert first[0] == second[0] and first[-1] != second[-1]
    assert first[-1][1] < first[0][1]


def test_zero_steps_turn_it_off_and_it_is_logged_where_metrics_are(tmp_path, monkeypatch):
    logged = []
    monkeypatch.setattr(validation_loss, "log_metrics", lambda accelerator, *entry: logged.append(entry))
    assert job(tmp_path / "a", validation_loss_steps=0)[0].validation_losses == [] == logged
    curve = job(tmp_path / "b", validation_loss_steps=3)[0].validation_losses
    assert logged == [("validation", {"loss": loss}, step) for step, loss in curve] and len(curve) == 3


def test_generators_and_the_mode_of_each_layer_are_left_as_they_were(tmp_path):
    config = TinyConfig(output_dir=str(tmp_path), validation_loss_steps=1, **SETTINGS)
    with start_run(config) as started:
        task = TinyTask(tiny_model(config), config)
        loop = prepare_loop(started, task, NoisyColors(config), None, WatchedSamples(NoisyColors(config)))
        task.model.train()
        states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        loop.validation_loss.run_if_due()
        assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
        assert all(module.training for module in task.model.modules())
        assert all(parameter.grad is None for parameter in task.model.parameters())
        (point,) = loop.state.progress.validation_losses
        loop.validation_loss.run_if_due(is_over=True)
        assert loop.state.progress.validation_losses == [point]  # a step is measured once


def test_a_run_that_is_resumed_with_other_batches_keeps_its_samples(tmp_path, monkeypatch):
    seen = []
    original = TinyTask.validation_loss
    monkeypatch.setattr(
        TinyTask, "validation_loss", lambda self, batch: (seen.extend(batch["path"]), original(self, batch))[1]
    )
    monkeypatch.setattr(validation_loss, "plan", lambda config, steps: (3, config.train_batch_size))
    job(tmp_path, validation_loss_steps=3, max_train_steps=3)
    first = seen[:3]
    seen.clear()
    settings = {"max_train_steps": 6, "train_batch_size": 6, "gradient_accumulation_steps": 1}
    curve = job(tmp_path, validation_loss_steps=3, resume_from_checkpoint="latest", **settings)[0].validation_losses
    assert seen == first and [step for step, _ in curve] == [0, 3, 6]


CONFIGS = [
    train_dit.DiTConfig,
    train_classification.ClassificationConfig,
    train_depth.DepthConfig,
    train_language.LanguageConfig,
]


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize(
    "flags", [{}, {"max_train_steps": 50_000, "train_batch_size": 2}, {"validation_loss_steps": 40}]
)
def test_by_default_it_takes_a_small_part_of_the_time(config_class, flags):
    config = config_class(**flags)
    every, count = plan(config, config.max_train_steps)
    cost = (1 + config.max_train_steps // every) * count
    of_training = STEP_COST * config.max_train_steps * config.train_batch_size
    assert cost <= SHARE * of_training and FEWEST <= count <= MOST
    assert flags.get("validation_loss_steps", every) == every
    assert total_steps(config, 1000, 1) // every >= 7


def test_a_short_run_has_a_few_points():
    every, count = plan(TinyConfig(max_train_steps=20), 20)
    assert 20 // every == FEWEST_POINTS and count == FEWEST
    assert plan(TinyConfig(validation_loss_steps=0), 20)[0] == 0
