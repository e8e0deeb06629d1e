"""Evaluation of a task, and periodic evaluation every ``validation_steps`` of training, keeping the best adapter."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from onelora_vision.seeding import seed_all
from onelora_vision.tasks.base import Task
from onelora_vision.training.checkpoint import RunState
from onelora_vision.training.setup import Run
from onelora_vision.training.sharding import ShardedBlocks
from onelora_vision.training.trackers import log_metrics


def evaluate(task: Task, loader, accelerator: Accelerator, seed: int = 0) -> dict[str, float]:
    """``task.evaluate`` with the bare model in eval mode, without gradients, with seeded generators."""
    with evaluating(task, accelerator, seed):
        return task.evaluate(loader, accelerator)


@contextlib.contextmanager
def evaluating(task: Task, accelerator: Accelerator, seed: int) -> Iterator[None]:
    """Run a block with the bare model in eval mode, without gradients, with seeded generators."""
    wrapped, training = task.model, task.model.training
    task.model = accelerator.unwrap_model(wrapped)  # DDP's forward would wait for processes that have no batches left
    task.model.eval()
    seed_all(seed)
    try:
        with torch.no_grad():
            yield
    finally:
        task.model = wrapped
        task.model.train(training)


@contextlib.contextmanager
def with_average(state: RunState) -> Iterator[None]:
    """Replace the trained weights by their average for the duration of a block, if training keeps an average."""
    with state.ema.applied() if state.ema else contextlib.nullcontext():
        yield


@dataclass
class PeriodicEvaluation:
    """Evaluates during training: call `run_if_due` before each step.

    Attributes:
        state: of the training; its progress records the metrics and the best step.
        loader: passed to ``task.evaluate``.
        sharded: the base's blocks if the processes share them; gathered for evaluations.
    """

    run: Run
    task: Task
    state: RunState
    loader: object = None
    sharded: ShardedBlocks | None = None

    def run_if_due(self) -> None:
        """Evaluate, draw, and save the adapter if it is the best, unless this step has already been evaluated."""
        config, progress = self.run.config, self.state.progress
        every = config.validation_steps
        if not every or progress.step % every or progress.evaluated_step == progress.step:
            return
        accelerator = self.run.accelerator
        whole = self.sharded.whole() if self.sharded else contextlib.nullcontext()
        with with_average(self.state), whole, self.run.interruption.at_once(possible=accelerator.num_processes == 1):
            metrics = evaluate(self.task, self.loader, accelerator, config.seed)
            best = self._is_best(metrics)
            if best:
                self.run.save_adapter(self.task, "best")
            self._draw()
        progress.evaluated_step = progress.step
        progress.evaluations.append((progress.step, metrics))
        if best:
            progress.best_step, progress.best_metric = progress.step, metrics[config.metric_for_best_model]
        log_metrics(accelerator, "evaluation", metrics, progress.step)

    def has_stalled(self) -> bool:
        """Whether ``early_stopping_patience`` evaluations have passed without a new best."""
        patience, progress = self.run.config.early_stopping_patience, self.state.progress
        since = [step for step, _ in progress.evaluations if step > (progress.best_step or 0)]
        return 0 < patience <= len(since)

    def _is_best(self, metrics: dict[str, float]) -> bool:
        config, best = self.run.config, self.state.progress.best_metric
        if config.metric_for_best_model is None:
            return False
        value = metrics[config.metric_for_best_model]
        return math.isfinite(value) and (best is None or (value > best if config.greater_is_better else value < best))

    def _draw(self) -> None:
        if type(self.task).draw is Task.draw or not self.run.accelerator.is_main_process:
            return
        step = self.state.progress.step
        with (
            evaluating(self.task, self.run.accelerator, self.run.config.seed),
            self.run.folder.writing(f"validation/step-{step:06}.png") as path,
        ):
            self.task.draw(path, step)
