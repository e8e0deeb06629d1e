"""The loss on fixed held-out samples during training: a curve without the noise of the batches.

The samples, their noise and their timesteps are the same at each point and in each run, so the curve changes only with
the model. The training does not depend on it: the generators keep their states, and the model its mode.
"""

import math
from dataclasses import dataclass, field

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils.data import Dataset, Subset

from onelora_vision.data.stream import evaluation_loader
from onelora_vision.seeding import mix, seeded
from onelora_vision.tasks.base import Task
from onelora_vision.training.checkpoint import RunState
from onelora_vision.training.config import TrainingConfig
from onelora_vision.training.evaluation import evaluating, with_average
from onelora_vision.training.setup import Run
from onelora_vision.training.trackers import log_metrics

POINTS, FEWEST_POINTS = 20, 4  # of a curve in addition to its start, unless the config says otherwise
SHARE = 0.03  # of the training's time that the curve may take
STEP_COST = 1.75  # a step's time in forward passes of its samples, at least: 1.8 to 2.6 on the embedded jobs
FEWEST, GOOD, MOST = 8, 16, 64  # samples of a point; there are fewer points before there are less than ``GOOD``
MOST_BYTES = 256 << 20  # that the samples may take in memory
_SEED = 7  # of the choice of samples: no run's


def plan(config: TrainingConfig, steps: int) -> tuple[int, int]:
    """Steps between two points of the curve, and how many samples each is of; 0 steps: there is no curve.

    Points and samples are as many as fit into `SHARE` of the time that ``steps`` steps take, but for runs of a few hundred
    training samples, in which `FEWEST_POINTS` points of `FEWEST` samples take seconds at most.
    """
    budget = SHARE * STEP_COST * steps * config.train_batch_size * config.gradient_accumulation_steps
    every = config.validation_loss_steps
    if every is None:
        points = min(POINTS, max(FEWEST_POINTS, int(budget) // GOOD - 1))
        every = math.ceil(steps / points)
    points = 1 + steps // every if every else 1
    return every, min(MOST, max(FEWEST, int(budget) // points))


@dataclass(frozen=True)
class WatchedSamples:
    """What a validation loss is measured on.

    Attributes:
        dataset: samples without augmentation. held_out: whether they are not trained on.
    """

    dataset: Dataset
    held_out: bool = True


@dataclass
class ValidationLoss:
    """Adds points to the curve of ``state.progress``: call `run_if_due` before each step and after the last.

    All processes do the same work on the same samples, so they stay in step without a message.

    Attributes:
        watched: None: there is no curve.
        steps: of the whole run.
    """

    run: Run
    task: Task
    state: RunState
    watched: WatchedSamples | None
    steps: int
    _batches: list[dict] = field(default_factory=list)

    def run_if_due(self, is_over: bool = False) -> None:
        """Measure the loss where the step is due, or the training is over, unless this step has been measured."""
        progress = self.state.progress
        every, count = plan(self.run.config, self.steps)
        if not (every and self.watched and len(self.watched.dataset)) or not (is_over or progress.step % every == 0):
            return
        curve = progress.validation_losses
        if curve and curve[-1][0] == progress.step:
            return
        # A run that is resumed with other steps or batches measures on the samples that it began with.
        progress.validation_samples = progress.validation_samples or min(count, len(self.watched.dataset))
        loss = self._measure()
        curve.append((progress.step, loss))
        log_metrics(self.run.accelerator, "validation", {"loss": loss}, progress.step)

    def _measure(self) -> float:
        accelerator, total, count = self.run.accelerator, 0.0, 0
        with seeded(_SEED), with_average(self.state), evaluating(self.task, accelerator, _SEED):
            self._batches = self._batches or self._read()
            for batch in self._batches:
                size = self.task.weight(batch)
                batch = send_to_device(batch, accelerator.device, skip_keys="seed")
                total, count = total + size * float(self.task.validation_loss(batch)), count + size
        return total / count

    def _read(self) -> list[dict]:
        config = self.run.config
        order = torch.randperm(len(self.watched.dataset), generator=torch.Generator().manual_seed(mix(_SEED)))
        samples = Subset(self.watched.dataset, order[: self.state.progress.validation_samples].tolist())
        batches, size = [], 0
        for batch in evaluation_loader(samples, min(config.train_batch_size, config.eval_batch_size)):
            size += sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))
            if batches and size > MOST_BYTES:
                break
            batches.append(batch)
        return batches
