"""The training loop that all scripts share. It knows a task only by the methods of `tasks.base.Task`.

Every step is a function of the seed and the step's number: the sample stream says which samples, each sample's seed
says how they are drawn, and the global generators (dropout) are seeded at each batch. So a run that was stopped
anywhere and resumed ends in the same bits as one that was not.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from onelora_vision.data.stream import TrainingBatchSampler, training_loader
from onelora_vision.errors import Stopped, TrainingError
from onelora_vision.runtime.progress import progress_bar
from onelora_vision.seeding import seed_all
from onelora_vision.tasks.base import Task
from onelora_vision.training import checkpoint as ckpt
from onelora_vision.training.compilation import compile_blocks
from onelora_vision.training.config import TrainingConfig, save_config
from onelora_vision.training.ema import EMA
from onelora_vision.training.optim import (
    build_optimizer,
    build_scheduler,
    samples_per_step,
    to_fp32,
    total_steps,
)
from onelora_vision.training.setup import Run
from onelora_vision.training.sharding import ShardedBlocks, leave_frozen_to_us
from onelora_vision.training.step import OptimizerStep
from onelora_vision.training.sum_scale import rates_by_sums
from onelora_vision.training.trackers import log_metrics, open_trackers


@dataclass(frozen=True)
class TrainingSummary:
    """What a run did, over all its interruptions.

    Attributes:
        steps, skipped_steps: optimizer steps done; of those, how many were skipped because of a NaN.
        seconds, seconds_per_step: in steps only, without evaluations and checkpoints.
        data_seconds_per_step: of these, what a step waited for its batches.
        history: per step: loss, grad_norm, learning_rate and what else ``forward`` returned.
        evaluations: (step, metrics) of each evaluation during training.
        best_step, best_metric: of ``metric_for_best_model``, else None.
    """

    steps: int
    skipped_steps: int
    seconds: float
    seconds_per_step: float
    data_seconds_per_step: float
    history: dict[str, list[float]]
    evaluations: list[tuple[int, dict[str, float]]]
    best_step: int | None
    best_metric: float | None

    @classmethod
    def of(cls, progress: ckpt.Progress) -> "TrainingSummary":
        steps = max(progress.step, 1)
        return cls(
            steps=progress.step,
            skipped_steps=progress.skipped_steps,
            seconds=progress.seconds,
            seconds_per_step=progress.seconds / steps,
            data_seconds_per_step=progress.data_seconds / steps,
            history=progress.history,
            evaluations=progress.evaluations,
            best_step=progress.best_step,
            best_metric=progress.best_metric,
        )


def train(run: Run, task: Task, dataset: Dataset, evaluation_loader=None) -> TrainingSummary:
    """Train what in ``task.model`` requires gradients; after it the model holds the result (the average, if any).

    The last step's checkpoint is written whatever ``checkpointing_steps`` says, so that what follows the training can be
    repeated without it. ``output_dir/best`` keeps the best adapter by ``metric_for_best_model``, ``adapter_without_ema``
    with ``use_ema`` the last one without the average, ``validation`` what ``task.draw`` draws after each evaluation.

    Args:
        run: of `setup.start_run`.
        dataset: takes a `SampleRef`, gives a dictionary of tensors, numbers and strings.
        evaluation_loader: handed to ``task.evaluate`` every ``validation_steps``.

    Raises:
        InputError: an unusable setting, a checkpoint of a run with other settings.
        TrainingError: a NaN under ``on_nan="stop"``, a checkpoint that cannot be written, the end of another process or
            of one that loads data.
        WriteError: another file that cannot be written.
        Stopped: SIGTERM or SIGINT, with a checkpoint written.
    """
    config, accelerator = run.config, run.accelerator
    processes = accelerator.num_processes
    steps = total_steps(config, len(dataset), processes)
    to_fp32(task.model)
    factors = None
    if config.sum_scale == "rms":
        factors = rates_by_sums(task, _first_batch(dataset, config, accelerator), accelerator)
    if config.torch_compile:
        compile_blocks(task.model)
    optimizer = build_optimizer(task.model, config, processes, factors)
    scheduler = build_scheduler(optimizer, config, steps)
    if config.shard_base:
        leave_frozen_to_us(task.model)
    task.model, optimizer = accelerator.prepare(task.model, optimizer)
    model = accelerator.unwrap_model(task.model)
    sharded = ShardedBlocks(model, accelerator) if config.shard_base else None
    ema = EMA(model, config.ema_decay) if config.use_ema else None
    state = ckpt.RunState(model, optimizer, scheduler, accelerator.scaler, ema)
    settings = ckpt.run_settings(config, len(dataset), samples_per_step(config, processes)) | task.identity
    loop = _Loop(run, task, state, settings, evaluation_loader, sharded)
    loop.resume()
    loop.go(dataset, steps)
    loop.report_slow_data()
    if sharded is not None:
        sharded.dissolve()
    if ema is not None:
        loop.save_adapter("adapter_without_ema")
        ema.copy_to_model()
    return TrainingSummary.of(state.progress)


def _first_batch(dataset: Dataset, config: TrainingConfig, accelerator: Accelerator) -> dict:
    """What this process's run begins with."""
    place = accelerator.process_index, accelerator.num_processes
    sampler = TrainingBatchSampler(len(dataset), config.train_batch_size, 1, config.seed, *place)
    return next(iter(training_loader(dataset, sampler)))


def evaluate(task: Task, loader, accelerator: Accelerator, seed: int = 0) -> dict[str, float]:
    """``task.evaluate`` with the bare model in eval mode, without gradients, under seeded generators."""
    with evaluating(task, accelerator, seed):
        return task.evaluate(loader, accelerator)


@contextlib.contextmanager
def evaluating(task: Task, accelerator: Accelerator, seed: int) -> Iterator[None]:
    """The bare model in eval mode, without gradients, under seeded generators, for a block."""
    wrapped, training = task.model, task.model.training
    task.model = accelerator.unwrap_model(wrapped)  # DDP's forward would wait for processes that have no batch left
    task.model.eval()
    seed_all(seed)
    try:
        with torch.no_grad():
            yield
    finally:
        task.model = wrapped
        task.model.train(training)


@dataclass
class _Loop:
    run: Run
    task: Task
    state: ckpt.RunState
    settings: dict
    evaluation_loader: object
    sharded: ShardedBlocks | None = None
    saved_step: int = 0

    def __post_init__(self):
        self.config, self.accelerator = self.run.config, self.run.accelerator

    def resume(self) -> None:
        """Load the checkpoint that the config names, and open the logs."""
        config, accelerator = self.config, self.accelerator
        folder = ckpt.find_checkpoint(config.output_dir, config.resume_from_checkpoint)
        if folder is not None:
            ckpt.load_checkpoint(folder, self.state, self.settings)
            accelerator.print(f"resumed from {folder}")
        self.saved_step = self.state.progress.step
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with self.run.folder.writing("config.yaml") as path:
                save_config(config, path)
        open_trackers(accelerator, self.saved_step)

    def go(self, dataset: Dataset, steps: int) -> None:
        """Steps, evaluations and checkpoints until ``steps`` or early stopping, with a checkpoint of the last step.

        Raises:
            Stopped: a signal arrived at any process; the checkpoint is written.
        """
        config, accelerator, progress = self.config, self.accelerator, self.state.progress
        interruption, optimizer_step = self.run.interruption, OptimizerStep(self.task, config, accelerator, self.state)
        sampler = TrainingBatchSampler(
            len(dataset),
            config.train_batch_size,
            steps * config.gradient_accumulation_steps,
            config.seed,
            accelerator.process_index,
            accelerator.num_processes,
            start_batch=progress.step * config.gradient_accumulation_steps,
        )
        batches = iter(training_loader(dataset, sampler, config.dataloader_num_workers))
        hidden = not accelerator.is_main_process
        bar = progress_bar(steps, desc="training", unit="step", initial=progress.step, hidden=hidden)
        self.task.model.train()
        with interruption.deferred(), bar, self._saving_on_failure():
            while True:
                with contextlib.suppress(Stopped):  # the evaluation is done again after resuming
                    self._evaluate_if_due()
                signal_number = self._signal_of_any_process()
                is_over = progress.step >= steps or self._has_stalled()
                self._save_if_due(now=signal_number != 0 or is_over)
                if signal_number or is_over:
                    self._rotate()  # a process killed between a checkpoint and this has left one more
                    break
                metrics = optimizer_step(batches, sampler)
                shown = {"loss": f"{metrics['loss']:.4g}", "lr": f"{next(self._rates(metrics)):.3g}"}
                bar.set_postfix(shown | {"grad_norm": f"{metrics['grad_norm']:.3g}"}, refresh=False)
                bar.update()
        self._note_checkpoint()
        if signal_number:
            raise Stopped(signal_number)

    @staticmethod
    def _rates(metrics: dict[str, float]) -> Iterator[float]:
        return (value for name, value in metrics.items() if name.startswith("lr_"))

    @contextlib.contextmanager
    def _saving_on_failure(self) -> Iterator[None]:
        """Write a checkpoint before an unforeseen error ends the run, and name it in the error.

        Not on several processes, which may not have stopped at the same step, and not where the error is that the
        training itself has gone wrong.
        """
        try:
            yield
        except TrainingError:
            raise
        except Exception:
            if self.accelerator.num_processes == 1 and self.state.is_whole:
                with contextlib.suppress(TrainingError):
                    self._save_if_due(now=True)
            self._note_checkpoint()
            raise

    def _evaluate_if_due(self) -> None:
        config, progress, ema = self.config, self.state.progress, self.state.ema
        every = config.validation_steps
        if not every or progress.step % every or progress.evaluated_step == progress.step:
            return
        averaged = ema.applied() if ema else contextlib.nullcontext()
        whole = self.sharded.whole() if self.sharded else contextlib.nullcontext()
        with averaged, whole, self.run.interruption.at_once(possible=self.accelerator.num_processes == 1):
            metrics = evaluate(self.task, self.evaluation_loader, self.accelerator, config.seed)
            best = self._is_best(metrics)
            if best:
                self.save_adapter("best")
            self._draw_validation()
        progress.evaluated_step = progress.step
        progress.evaluations.append((progress.step, metrics))
        if best:
            progress.best_step, progress.best_metric = progress.step, metrics[config.metric_for_best_model]
        log_metrics(self.accelerator, "evaluation", metrics, progress.step)

    def _draw_validation(self) -> None:
        if type(self.task).draw is Task.draw or not self.accelerator.is_main_process:
            return
        step = self.state.progress.step
        with (
            evaluating(self.task, self.accelerator, self.config.seed),
            self.run.folder.writing(f"validation/step-{step:06}.png") as path,
        ):
            self.task.draw(path, step)

    def save_adapter(self, name: str) -> None:
        """Write the adapter as it is now into a folder of ``output_dir``."""
        if self.accelerator.is_main_process:
            self.task.save(self.run.folder.path / name)

    def _is_best(self, metrics: dict[str, float]) -> bool:
        name, best = self.config.metric_for_best_model, self.state.progress.best_metric
        if name is None:
            return False
        value = metrics[name]
        return math.isfinite(value) and (
            best is None or (value > best if self.config.greater_is_better else value < best)
        )

    def _has_stalled(self) -> bool:
        """Whether as many evaluations as the config's patience have gone by without a new best."""
        patience, progress = self.config.early_stopping_patience, self.state.progress
        since = [step for step, _ in progress.evaluations if step > (progress.best_step or 0)]
        return 0 < patience <= len(since)

    def _signal_of_any_process(self) -> int:
        number = torch.tensor([self.run.interruption.signal or 0], device=self.accelerator.device)
        return int(self.accelerator.gather(number).max())

    def _save_if_due(self, now: bool) -> None:
        step, every = self.state.progress.step, self.config.checkpointing_steps
        if step == self.saved_step or not (now or (every and step % every == 0)):
            return
        self.saved_step = step
        if self.accelerator.is_main_process:
            ckpt.save_checkpoint(self.run.folder.path, self.state, self.settings)
        self._rotate()

    def _rotate(self) -> None:
        if self.accelerator.is_main_process:
            ckpt.rotate(self.run.folder.path, self.config.checkpoints_total_limit)

    def report_slow_data(self) -> None:
        """Say so if data came too slowly; not after a few steps, where the loader's start weighs most."""
        progress = self.state.progress
        if progress.step >= 20 and progress.data_seconds > 0.1 * progress.seconds:
            self.accelerator.print(
                f"training waited for data in {progress.data_seconds / progress.seconds:.0%} of its time: more processes "
                f"can read ahead (--dataloader_num_workers, now {self.config.dataloader_num_workers})"
            )

    def _note_checkpoint(self) -> None:
        last = ckpt.latest_checkpoint(self.config.output_dir)
        self.run.kept = f"the last good checkpoint is {last}" if last else ""
