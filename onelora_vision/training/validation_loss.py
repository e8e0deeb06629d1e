"""The loss on fixed held-out samples during training: a curve without batch noise.

The samples, their noise and their timesteps are the same at each point and in each run, so only the model changes the
curve. It does not affect training: the generators keep their states, and the model its mode.
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

POINTS, FEWEST_POINTS = 20, 4  # per curve, not counting its start, unless the config says otherwise
SHARE = 0.03  # of the training time that the curve may take
STEP_COST = 1.75  # lower bound of a step's time, in forward passes of its samples: 1.8 to 2.6 in the embedded jobs
FEWEST, GOOD, MOST = 8, 16, 64  # samples per point; rather than use less than ``GOOD``, there are fewer points
MOST_BYTES = 256 << 20  # of memory for the samples
_SEED = 7  # for choosing samples, independent of the run's seed


def plan(config: TrainingConfig, steps: int) -> tuple[int, int]:
    """Steps between two points of the curve, and the number of samples per point; 0 steps: no curve.

    Uses as many points and samples as fit into `SHARE` of the time of ``steps`` steps, but never less than
    `FEWEST_POINTS` points with `FEWEST` samples, which take seconds at most in runs with a few hundred training
    samples.
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
    """Samples for measuring a validation loss.

    Attributes:
        dataset: samples without augmentation. held_out: whether they are not used for training.
    """

    dataset: Dataset
    held_out: bool = True


@dataclass
class ValidationLoss:
    """Adds points to the curve of ``state.progress``: call `run_if_due` before each step and after the last one.

    All processes do the same work on the same samples, so they stay in sync without communication.

    Attributes:
        watched: None for no curve.
        steps: of the whole run.
    """

    run: Run
    task: Task
    state: RunState
    watched: WatchedSamples | None
    steps: int
    _batches: list[dict] = field(default_factory=list)

    def run_if_due(self, is_over: bool = False) -> None:
        """Measure the loss if it is due at this step or training is over, unless it has been measured at this step."""
        progress = self.state.progress
        every, count = plan(self.run.config, self.steps)
        if not (every and self.watched and len(self.watched.dataset)) or not (is_over or progress.step % every == 0):
            return
        curve = progress.validation_losses
        if curve and curve[-1][0] == progress.step:
            return
        # If resumed with other steps or batch sizes, a run keeps measuring on the samples that it started with.
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
