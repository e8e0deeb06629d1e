"""The training loop that all scripts share. It knows a task only by its model, ``forward`` and ``evaluate``.

Every step is a function of the seed and the step's number: the sample stream says which samples, each sample's seed
says how they are drawn, and the global generators (dropout) are seeded at each batch. So a run that was stopped
anywhere and resumed ends in the same bits as one that was not.
"""

import contextlib
import math
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from torch.utils.data import Dataset
from tqdm import tqdm

from onelora_vision.data.stream import TrainingBatchSampler, training_loader
from onelora_vision.errors import InputError, TrainingError, nearest
from onelora_vision.files import atomic_directory
from onelora_vision.seeding import seed_all
from onelora_vision.tasks.base import Task
from onelora_vision.training import checkpoint as ckpt
from onelora_vision.training.compilation import compile_blocks
from onelora_vision.training.config import TrainingConfig, save_config
from onelora_vision.training.ema import EMA
from onelora_vision.training.interrupt import Interrupted, Interruption, in_touch
from onelora_vision.training.optim import (
    build_optimizer,
    build_scheduler,
    samples_per_step,
    to_fp32,
    total_steps,
)
from onelora_vision.training.sharding import ShardedBlocks, leave_frozen_to_us
from onelora_vision.training.step import OptimizerStep
from onelora_vision.training.sum_scale import rates_by_sums
from onelora_vision.training.trackers import log_figures, open_trackers


@dataclass(frozen=True)
class TrainingSummary:
    """What a run did, over all its interruptions.

    Attributes:
        steps, skipped_steps: optimizer steps done; of those, how many were skipped because of a NaN.
        seconds, seconds_per_step: in steps only, without evaluations and checkpoints.
        data_seconds_per_step: of these, what a step waited for its batches.
        history: per step: loss, grad_norm, learning_rate and what else ``forward`` returned.
        evaluations: (step, figures) of each evaluation during training.
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


def train(
    task: Task,
    dataset: Dataset,
    config: TrainingConfig,
    accelerator: Accelerator,
    evaluation_loader=None,
    save_adapter: Callable[[Path], None] | None = None,
    draw: Callable[[Path, int], None] | None = None,
    hint: str = "try a lower --learning_rate",
    identity: dict[str, str] | None = None,
) -> TrainingSummary:
    """Train what in ``task.model`` requires gradients; after it the model holds the result (the average, if any).

    Args:
        dataset: takes a `SampleRef`, gives a dictionary of tensors, numbers and strings.
        evaluation_loader: handed to ``task.evaluate`` every ``validation_steps``.
        save_adapter: writes the adapter's files into a folder; called for the best one, kept in ``output_dir/best``,
            and with ``use_ema`` for the last one without the average, kept in ``output_dir/adapter_without_ema``. By
            default PEFT's ``save_pretrained``.
        draw: makes a picture of what the model does now, at the path and for the step it is given; called after each
            evaluation, on the main process, with the model as the evaluation had it. Kept in ``output_dir/validation``.
        hint: what to try when the loss is no longer a number.
        identity: hashes that a resumed run must share, by what they are of: the base, the data.

    Raises:
        InputError: an unusable setting, a folder in use, a checkpoint of a run with other settings.
        TrainingError: a NaN under ``on_nan="stop"``, a checkpoint that cannot be written, the end of another process or
            of one that loads data.
        WriteError: another file that cannot be written.
        SystemExit: 143 or 130 after SIGTERM or SIGINT, with a checkpoint written.
    """
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
    run = ckpt.RunState(model, optimizer, scheduler, accelerator.scaler, ema)
    settings = ckpt.run_settings(config, len(dataset), samples_per_step(config, processes)) | (identity or {})
    save_adapter = save_adapter or model.save_pretrained
    loop = _Loop(task, config, accelerator, run, settings, evaluation_loader, save_adapter, draw, sharded)
    with in_touch(accelerator.process_index), _naming_lost_workers(config):
        loop.resume()
        signal_number = loop.go(dataset, steps, OptimizerStep(task, config, accelerator, run, hint))
    if signal_number:
        loop.leave(signal_number)
    loop.tell_of_waiting()
    if sharded is not None:
        sharded.dissolve()
    if ema is not None:
        loop.save_to("adapter_without_ema")
        ema.copy_to_model()
    progress = run.progress
    return TrainingSummary(
        steps=progress.step,
        skipped_steps=progress.skipped_steps,
        seconds=progress.seconds,
        seconds_per_step=progress.seconds / max(progress.step, 1),
        data_seconds_per_step=progress.data_seconds / max(progress.step, 1),
        history=progress.history,
        evaluations=progress.evaluations,
        best_step=progress.best_step,
        best_metric=progress.best_metric,
    )


@contextlib.contextmanager
def _naming_lost_workers(config: TrainingConfig) -> Iterator[None]:
    """Tell the end of a loader's process, which PyTorch raises in the midst of whatever is done, in one line."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            f"{str(error).splitlines()[0].rstrip('. ')}, often for want of memory; the last good checkpoint is "
            f"{ckpt.latest_checkpoint(config.output_dir) or 'none'}: go on with --resume_from_checkpoint latest, "
            f"perhaps with fewer than --dataloader_num_workers {config.dataloader_num_workers}"
        ) from error


def _first_batch(dataset: Dataset, config: TrainingConfig, accelerator: Accelerator) -> dict:
    """What this process's run begins with."""
    place = accelerator.process_index, accelerator.num_processes
    sampler = TrainingBatchSampler(len(dataset), config.train_batch_size, 1, config.seed, *place)
    return next(iter(training_loader(dataset, sampler)))


def evaluate(task: Task, loader, accelerator: Accelerator, seed: int = 0) -> dict[str, float]:
    """``task.evaluate`` with the bare model in eval mode, without gradients, under seeded generators."""
    with in_touch(accelerator.process_index), _evaluation(task, accelerator, seed):
        return task.evaluate(loader, accelerator)


@contextlib.contextmanager
def _evaluation(task: Task, accelerator: Accelerator, seed: int) -> Iterator[None]:
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
    task: Task
    config: TrainingConfig
    accelerator: Accelerator
    run: ckpt.RunState
    settings: dict
    evaluation_loader: object
    save_adapter: Callable[[Path], None]
    draw: Callable[[Path, int], None] | None
    sharded: ShardedBlocks | None = None
    saved_step: int = 0

    def resume(self) -> None:
        """Take the output folder, load the checkpoint that the config names, open the logs."""
        config, accelerator = self.config, self.accelerator
        if accelerator.is_main_process:
            ckpt.lock_folder(config.output_dir)
        accelerator.wait_for_everyone()
        folder = ckpt.find_checkpoint(config.output_dir, config.resume_from_checkpoint)
        if folder is not None:
            ckpt.load_checkpoint(folder, self.run, self.settings)
            accelerator.print(f"resumed from {folder}")
        self.saved_step = self.run.progress.step
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            save_config(config, Path(config.output_dir) / "config.yaml")
        open_trackers(accelerator, self.saved_step)

    def go(self, dataset: Dataset, steps: int, optimizer_step: OptimizerStep) -> int:
        """Steps, evaluations and checkpoints until ``steps``, early stopping, or a signal, whose number is returned."""
        config, accelerator, progress = self.config, self.accelerator, self.run.progress
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
        bar = tqdm(total=steps, initial=progress.step, unit="step", disable=not accelerator.is_main_process)
        self.task.model.train()
        with Interruption() as interruption, bar:
            while True:
                with contextlib.suppress(Interrupted):  # the evaluation is done again after resuming
                    self._evaluate_if_due(interruption)
                signal_number = self._signal_of_any_process(interruption)
                self._save_if_due(now=signal_number != 0)
                if signal_number or progress.step >= steps or self._has_stalled():
                    self._rotate()  # a process killed between a checkpoint and this has left one more
                    return signal_number
                figures = optimizer_step(batches, sampler)
                bar.update()
                bar.set_postfix(loss=f"{figures['loss']:.4g}", grad_norm=f"{figures['grad_norm']:.3g}")

    def _evaluate_if_due(self, interruption: Interruption) -> None:
        config, progress, ema = self.config, self.run.progress, self.run.ema
        every = config.validation_steps
        if not every or progress.step % every or progress.evaluated_step == progress.step:
            return
        averaged = ema.applied() if ema else contextlib.nullcontext()
        whole = self.sharded.whole() if self.sharded else contextlib.nullcontext()
        with averaged, whole, interruption.at_once(possible=self.accelerator.num_processes == 1):
            figures = evaluate(self.task, self.evaluation_loader, self.accelerator, config.seed)
            best = self._is_best(figures)
            if best:
                self.save_to("best")
            self._draw_validation()
        progress.evaluated_step = progress.step
        progress.evaluations.append((progress.step, figures))
        if best:
            progress.best_step, progress.best_metric = progress.step, figures[config.metric_for_best_model]
        log_figures(self.accelerator, "evaluation", figures, progress.step)

    def _draw_validation(self) -> None:
        if self.draw is None or not self.accelerator.is_main_process:
            return
        path = Path(self.config.output_dir) / "validation" / f"step-{self.run.progress.step:06}.png"
        with _evaluation(self.task, self.accelerator, self.config.seed):
            self.draw(path, self.run.progress.step)

    def save_to(self, name: str) -> None:
        """Write the adapter as it is now into a folder of ``output_dir``."""
        if self.accelerator.is_main_process:
            with atomic_directory(Path(self.config.output_dir) / name) as folder:
                self.save_adapter(folder)

    def _is_best(self, figures: dict[str, float]) -> bool:
        name, best = self.config.metric_for_best_model, self.run.progress.best_metric
        if name is None:
            return False
        if name not in figures:
            raise InputError(f"--metric_for_best_model {name} is not evaluated here{nearest(name, figures, 'figure')}")
        value = figures[name]
        return math.isfinite(value) and (
            best is None or (value > best if self.config.greater_is_better else value < best)
        )

    def _has_stalled(self) -> bool:
        """Whether as many evaluations as the config's patience have gone by without a new best."""
        patience, progress = self.config.early_stopping_patience, self.run.progress
        since = [step for step, _ in progress.evaluations if step > (progress.best_step or 0)]
        return 0 < patience <= len(since)

    def _signal_of_any_process(self, interruption: Interruption) -> int:
        number = torch.tensor([interruption.signal or 0], device=self.accelerator.device)
        return int(self.accelerator.gather(number).max())

    def _save_if_due(self, now: bool) -> None:
        step, every = self.run.progress.step, self.config.checkpointing_steps
        if step == self.saved_step or not (now or (every and step % every == 0)):
            return
        self.saved_step = step
        if self.accelerator.is_main_process:
            ckpt.save_checkpoint(self.config.output_dir, self.run, self.settings)
        self._rotate()

    def _rotate(self) -> None:
        if self.accelerator.is_main_process:
            ckpt.rotate(self.config.output_dir, self.config.checkpoints_total_limit)

    def tell_of_waiting(self) -> None:
        """Say so if data came too slowly; not after a few steps, where the loader's start weighs most."""
        progress = self.run.progress
        if progress.step >= 20 and progress.data_seconds > 0.1 * progress.seconds:
            self.accelerator.print(
                f"training waited for data in {progress.data_seconds / progress.seconds:.0%} of its time: more processes "
                f"can read ahead (--dataloader_num_workers, now {self.config.dataloader_num_workers})"
            )

    def leave(self, signal_number: int) -> NoReturn:
        """Say how to go on, and exit with the code that a process ended by this signal has."""
        latest = ckpt.latest_checkpoint(self.config.output_dir) if self.accelerator.is_main_process else None
        if latest is not None:
            how = f"go on with the same command and --resume_from_checkpoint latest ({latest})"
            print(f"stopped by {signal.Signals(signal_number).name}: {how}", file=sys.stderr)
        self.accelerator.end_training()
        sys.exit(128 + signal_number)
