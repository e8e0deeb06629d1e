"""One optimizer step: reproducible from any starting point, and never applied with NaN or infinite gradients."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device

from onelora_vision.data.stream import TrainingBatchSampler
from onelora_vision.errors import TrainingError
from onelora_vision.methods.names import find_method
from onelora_vision.seeding import mix, seed_all
from onelora_vision.tasks.base import Task
from onelora_vision.training.checkpoint import RunState, latest_checkpoint
from onelora_vision.training.config import TrainingConfig
from onelora_vision.training.optim import trained_parameters
from onelora_vision.training.trackers import log_metrics
from onelora_vision.tuners import probe_gradients

MAX_SKIPPED_IN_A_ROW = 20


@dataclass
class OptimizerStep:
    """Call it once per optimizer step; it advances ``state`` by one step.

    The global generators (dropout) are seeded by (seed, step, batch, process), so their states need not be saved.
    """

    task: Task
    config: TrainingConfig
    accelerator: Accelerator
    state: RunState
    skipped_in_a_row: int = 0
    probed: bool = False

    def __post_init__(self):
        # Once for all steps, as it visits every module. A list, since an exhausted generator would clip nothing.
        self.trained = list(trained_parameters(self.state.model).values())

    def __call__(self, batches: Iterator[dict], sampler: TrainingBatchSampler) -> dict[str, float]:
        """One optimizer step. Returns what was logged: means over the batches of all processes."""
        config, accelerator, state, start = self.config, self.accelerator, self.state, time.perf_counter()
        step, outputs, names = state.progress.step, [], []
        for micro, (batch, factor) in enumerate(self._weighted(batches)):
            number = step * config.gradient_accumulation_steps + micro
            names.append(batch.get("path") or [f"sample {ref.index}" for ref in sampler.batch(number)])
            seed_all(mix(config.seed, step, micro, accelerator.process_index))
            with accelerator.accumulate(self.task.model):
                output = self.task.forward(send_to_device(batch, accelerator.device, skip_keys="seed"))
                output = {name: factor * value for name, value in output.items()}
                loss = output["loss"]
                accelerator.backward(loss + state.allocation.penalty() if state.allocation else loss)
            outputs.append({name: value.detach().float() for name, value in output.items()})
        if not self.probed:
            probe_gradients(state.model)
            self.probed = True
        norm = accelerator.clip_grad_norm_(self.trained, config.max_grad_norm or math.inf)
        means = torch.stack([torch.stack(list(output.values())) for output in outputs]).mean(0)
        metrics = dict(zip(outputs[0], accelerator.reduce(means, "mean").tolist()), grad_norm=float(norm))
        metrics |= {f"lr_{group['name']}": group["lr"] for group in state.optimizer.param_groups}
        state.is_whole = False
        if self._is_usable(metrics):
            self._update()
        else:
            self._stop_or_skip(metrics, outputs, names)
        state.optimizer.zero_grad()
        state.progress.step += 1
        state.progress.seconds += time.perf_counter() - start
        for name, value in metrics.items():
            state.progress.history.setdefault(name, []).append(value)
        state.is_whole = True
        log_metrics(accelerator, "train", metrics, state.progress.step)
        return metrics

    def _weighted(self, batches: Iterator[dict]) -> Iterator[tuple[dict, float]]:
        """The step's batches, each with a factor that turns the mean over batches into one over all items of the step.

        If all batches have equal weight, each is read when needed; otherwise all are read first and the processes sum
        the weights.
        """
        count = self.config.gradient_accumulation_steps
        if type(self.task).weight is Task.weight:
            yield from ((self._next(batches), 1.0) for _ in range(count))
            return
        found = [self._next(batches) for _ in range(count)]
        weights = torch.tensor([self.task.weight(batch) for batch in found], device=self.accelerator.device)
        total = int(self.accelerator.reduce(weights.sum(), "sum"))
        batches_in_all = count * self.accelerator.num_processes
        yield from ((batch, batches_in_all * weight / total) for batch, weight in zip(found, weights.tolist()))

    def _next(self, batches: Iterator[dict]) -> dict:
        waiting = time.perf_counter()
        batch = next(batches)
        self.state.progress.data_seconds += time.perf_counter() - waiting
        return batch

    def _update(self) -> None:
        state = self.state
        state.optimizer.step()
        self.skipped_in_a_row = 0
        if not state.optimizer.step_was_skipped:  # fp16's scaler skips steps with overflowing gradients
            if state.allocation is not None:
                state.allocation.after_step(state.progress.step)
            state.scheduler.step()
            if state.ema is not None:
                state.ema.update()

    def _is_usable(self, metrics: dict[str, float]) -> bool:
        # Under fp16, the loss scaler finds its scale by infinite gradients, as long as the scale can still decrease.
        sinking = self.state.scaler is not None and self.state.scaler.get_scale() > 1
        return math.isfinite(metrics["loss"]) and (math.isfinite(metrics["grad_norm"]) or sinking)

    def _stop_or_skip(self, metrics: dict[str, float], outputs: list[dict], names: list[list[str]]) -> None:
        """Skip this step's gradients, or raise a `TrainingError` with everything that helps to find the cause."""
        self.state.progress.skipped_steps += 1
        self.skipped_in_a_row += 1
        if self.config.on_nan == "skip" and self.skipped_in_a_row < MAX_SKIPPED_IN_A_ROW:
            if self.state.scaler is not None:
                self.state.scaler.update()
            return
        bad = [name for output, batch in zip(outputs, names) if not output["loss"].isfinite() for name in batch]
        bad = gather_object(bad) or gather_object([name for batch in names for name in batch])
        raise TrainingError(
            f"step {self.state.progress.step}: loss {metrics['loss']}, gradient norm {metrics['grad_norm']} at learning "
            f"rate {self.state.optimizer.param_groups[0]['lr']:.3g}, in the batch of {', '.join(bad[:8])}"
            f"{f' and {len(bad) - 8} more' if len(bad) > 8 else ''}; the last good checkpoint is "
            f"{latest_checkpoint(self.config.output_dir) or 'none'}; {find_method(self.config.method).hint}"
        )
