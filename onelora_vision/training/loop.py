"""The training loop shared by all scripts. It knows a task only through the methods of `tasks.base.Task`.

Every step is a function of the seed and the step number: the sample stream determines the samples, each sample's seed
determines how it is drawn, and the global generators (dropout) are seeded for each batch. A run that is interrupted and
resumed anywhere therefore ends with exactly the same result as an uninterrupted one.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from onelora_vision.data.stream import TrainingBatchSampler, identity_of, training_loader
from onelora_vision.errors import Stopped, TrainingError
from onelora_vision.runtime.progress import progress_bar
from onelora_vision.tasks.base import Task
from onelora_vision.training import checkpoint as ckpt
from onelora_vision.training.compilation import compile_blocks
from onelora_vision.training.config import default_settings, save_config
from onelora_vision.training.ema import EMA
from onelora_vision.training.evaluation import PeriodicEvaluation
from onelora_vision.training.optim import (
    build_optimizer,
    build_scheduler,
    samples_per_step,
    to_fp32,
    total_steps,
)
from onelora_vision.training.rank_allocation import RankAllocation
from onelora_vision.training.setup import Run
from onelora_vision.training.sharding import ShardedBlocks, leave_frozen_to_us
from onelora_vision.training.step import OptimizerStep
from onelora_vision.training.sum_scale import rates_by_sums
from onelora_vision.training.summary import TrainingSummary
from onelora_vision.training.trackers import open_trackers
from onelora_vision.training.validation_loss import ValidationLoss, WatchedSamples


def train(
    run: Run, task: Task, dataset: Dataset, evaluation_loader=None, watched: WatchedSamples | None = None
) -> TrainingSummary:
    """Train the parameters of ``task.model`` that require gradients; the model then holds the result (or its average).

    A checkpoint of the last step is always written, regardless of ``checkpointing_steps``, so that the phases after
    training can be repeated alone. ``output_dir/best`` holds the best adapter by ``metric_for_best_model``; with
    ``use_ema``, ``adapter_without_ema`` holds the last one without the average; ``validation`` holds what ``task.draw``
    draws after each evaluation.

    Args:
        run: from `setup.start_run`.
        dataset: takes a `SampleRef` and returns a dictionary of tensors, numbers and strings.
        evaluation_loader: passed to ``task.evaluate`` every ``validation_steps``.
        watched: the validation loss is measured on some of these samples.

    Raises:
        InputError: an unusable setting, or a checkpoint of a run with other settings.
        TrainingError: a NaN under ``on_nan="stop"``, a checkpoint that cannot be written, or the end of another process
            of the run or of a data worker.
        WriteError: another file cannot be written.
        Stopped: SIGTERM or SIGINT, after writing a checkpoint.
    """
    loop = prepare_loop(run, task, dataset, evaluation_loader, watched)
    loop.resume()
    loop.go()
    loop.finish()
    return TrainingSummary.of(loop.state.progress)


def require_resumable(run: Run, task: Task, dataset: Dataset) -> None:
    """Refuse to resume from a checkpoint of a different run, before anything is computed or written.

    Raises:
        InputError: the checkpoint is damaged, or was written by a run with other settings, data or base.
    """
    folder = ckpt.find_checkpoint(run.config.output_dir, run.config.resume_from_checkpoint)
    if folder is not None:
        settings = _fixed_settings(run, task, dataset)
        ckpt.require_same_run(folder, task.model, settings, default_settings(type(run.config)))


def _fixed_settings(run: Run, task: Task, dataset: Dataset) -> dict:
    """Settings that a resumed run must share with the interrupted one."""
    fixed = ckpt.run_settings(run.config, len(dataset), samples_per_step(run.config, run.accelerator.num_processes))
    return {"task": task.info.task} | fixed | task.identity() | identity_of(dataset)


def prepare_loop(
    run: Run, task: Task, dataset: Dataset, evaluation_loader=None, watched: WatchedSamples | None = None
) -> "TrainingLoop":
    """Build optimizer, schedule and average, and let accelerate wrap ``task.model``. Arguments as for `train`."""
    config, accelerator = run.config, run.accelerator
    processes = accelerator.num_processes
    steps = total_steps(config, len(dataset), processes)
    to_fp32(task.model)
    factors = None
    if config.sum_scale == "rms":
        factors = rates_by_sums(task, _first_batch(run, dataset), accelerator)
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
    state = ckpt.RunState(model, optimizer, scheduler, accelerator.scaler, ema, RankAllocation.of(model, steps))
    evaluation = PeriodicEvaluation(run, task, state, evaluation_loader, sharded)
    validation_loss = ValidationLoss(run, task, state, watched, steps)
    settings = _fixed_settings(run, task, dataset)
    return TrainingLoop(run, task, dataset, steps, state, settings, evaluation, validation_loss, sharded)


def try_data(run: Run, dataset: Dataset) -> None:
    """Read the first batch in a dry run, without computing anything, and print the shapes of its tensors.

    Raises:
        InputError: one of its samples cannot be read.
    """
    with run.phase("reading the first batch"):
        batch = _first_batch(run, dataset)
    shapes = [
        f"{name} {'x'.join(map(str, x.shape))}" for name, x in batch.items() if torch.is_tensor(x) and x.ndim > 1
    ]
    run.accelerator.print(f"first batch           {', '.join(shapes)}")


def _first_batch(run: Run, dataset: Dataset) -> dict:
    """The first batch of this process."""
    config, place = run.config, (run.accelerator.process_index, run.accelerator.num_processes)
    sampler = TrainingBatchSampler(len(dataset), config.train_batch_size, 1, config.seed, *place)
    return next(iter(training_loader(dataset, sampler)))


@dataclass
class TrainingLoop:
    """A training ready to start: call `resume`, `go` and `finish` in this order.

    Attributes:
        steps: optimizer steps of the whole run.
        state: everything that changes during training.
        settings: settings that a resumed run must share with the interrupted one.
        sharded: the base's blocks if the processes share them.
        saved_step: step of the newest checkpoint.
    """

    run: Run
    task: Task
    dataset: Dataset
    steps: int
    state: ckpt.RunState
    settings: dict
    evaluation: PeriodicEvaluation
    validation_loss: ValidationLoss
    sharded: ShardedBlocks | None = None
    saved_step: int = 0

    def __post_init__(self):
        self.config, self.accelerator = self.run.config, self.run.accelerator

    def resume(self) -> None:
        """Load the checkpoint named by the config, if any, and open the logs."""
        config, accelerator = self.config, self.accelerator
        folder = ckpt.find_checkpoint(config.output_dir, config.resume_from_checkpoint)
        if folder is not None:
            ckpt.require_same_run(folder, self.state.model, self.settings, default_settings(type(config)))
            ckpt.load_checkpoint(folder, self.state)
            accelerator.print(f"resumed from {folder}")
        self.saved_step = self.state.progress.step
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            with self.run.folder.writing("config.yaml") as path:
                save_config(config, path)
        open_trackers(accelerator, self.saved_step)

    def go(self) -> None:
        """Run steps, evaluations and checkpoints until the last step or early stopping, and write a final checkpoint.

        Raises:
            Stopped: a process received a signal; the checkpoint has been written.
        """
        progress = self.state.progress
        optimizer_step = OptimizerStep(self.task, self.config, self.accelerator, self.state)
        loader = self._loader()
        batches, hidden = iter(loader), not self.accelerator.is_main_process
        bar = progress_bar(self.steps, desc="training", unit="step", initial=progress.step, hidden=hidden)
        self.task.model.train()
        with self.run.interruption.deferred(), bar, self._saving_on_failure():
            while True:
                with contextlib.suppress(Stopped):  # the evaluation is repeated after resuming
                    self.evaluation.run_if_due()
                signal_number = self._signal_of_any_process()
                is_over = progress.step >= self.steps or self.evaluation.has_stalled()
                self.validation_loss.run_if_due(is_over)
                self._save_if_due(now=signal_number != 0 or is_over)
                if signal_number or is_over:
                    self._rotate()  # a process killed between writing a checkpoint and this leaves an extra one
                    break
                metrics = optimizer_step(batches, loader.batch_sampler)
                shown = {"loss": f"{metrics['loss']:.4g}", "lr": f"{next(self._rates(metrics)):.3g}"}
                bar.set_postfix(shown | {"grad_norm": f"{metrics['grad_norm']:.3g}"}, refresh=False)
                bar.update()
        self._note_checkpoint()
        if signal_number:
            raise Stopped(signal_number)

    def finish(self) -> None:
        """Leave the result in the model: its blocks gathered and, with ``use_ema``, the average."""
        self._report_slow_data()
        if self.sharded is not None:
            self.sharded.dissolve()
        if self.state.ema is not None:
            self.run.save_adapter(self.task, "adapter_without_ema")
            self.state.ema.copy_to_model()

    def _loader(self) -> DataLoader:
        """The remaining batches."""
        config, accelerator = self.config, self.accelerator
        sampler = TrainingBatchSampler(
            len(self.dataset),
            config.train_batch_size,
            self.steps * config.gradient_accumulation_steps,
            config.seed,
            accelerator.process_index,
            accelerator.num_processes,
            start_batch=self.state.progress.step * config.gradient_accumulation_steps,
        )
        return training_loader(self.dataset, sampler, config.dataloader_num_workers)

    @staticmethod
    def _rates(metrics: dict[str, float]) -> Iterator[float]:
        return (value for name, value in metrics.items() if name.startswith("lr_"))

    @contextlib.contextmanager
    def _saving_on_failure(self) -> Iterator[None]:
        """Write a checkpoint before an unexpected error ends the run, and name it in the error.

        Does nothing with several processes, which may have stopped at different steps, or if the error is that training
        itself went wrong.
        """
        try:
            yield
        except TrainingError:
            self.run.kept = ""  # the error names the last checkpoint itself
            raise
        except Exception:
            if self.accelerator.num_processes == 1 and self.state.is_whole:
                with contextlib.suppress(TrainingError):
                    self._save_if_due(now=True)
            self._note_checkpoint()
            raise

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

    def _report_slow_data(self) -> None:
        """Report slow data loading, except after only a few steps, when the loader's start dominates."""
        progress = self.state.progress
        if progress.step >= 20 and progress.data_seconds > 0.1 * progress.seconds:
            self.accelerator.print(
                f"training spent {progress.data_seconds / progress.seconds:.0%} of its time waiting for data: more "
                f"processes can read ahead (--dataloader_num_workers, now {self.config.dataloader_num_workers})"
            )

    def _note_checkpoint(self) -> None:
        last = ckpt.latest_checkpoint(self.config.output_dir)
        if last:
            self.run.kept = f"the last good checkpoint is {last}"
