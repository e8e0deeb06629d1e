"""A run's output for users: its plan, its outcome and a loss plot; also versions and parameter counts."""

import functools
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import mean, stdev

import torch
from accelerate import Accelerator
from torch import nn

from onelora_vision.backbones.table import TASKS
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import head_parameters
from onelora_vision.metrics.direction import RETENTION, arrow
from onelora_vision.plots.figures import saved_figure
from onelora_vision.storage.outputs import Ledger
from onelora_vision.training.config import TrainingConfig
from onelora_vision.training.optim import samples_per_step, total_steps, trained_parameters

_PACKAGES = ("onelora_vision", "torch", "peft", "accelerate", "transformers", "diffusers", "timm", "numpy")


def count_parameters(model: nn.Module) -> dict[str, int]:
    """``trainable_parameters``: everything trained; ``adapter_parameters``: without the head or label table."""
    total = sum(parameter.numel() for parameter in trained_parameters(model).values())
    head = sum(parameter.numel() for parameter in head_parameters(model).values())
    return {"trainable_parameters": total, "adapter_parameters": total - head}


def peak_memory_bytes() -> int:
    """Peak memory of this process: allocated GPU memory, or the resident set size on machines without a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and the main packages."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # optional
            continue
    return found


def publish(config: TrainingConfig) -> str:
    """Upload the run's adapter to the hub; returns its address."""
    from onelora_vision.adapters.hub import push_adapter

    output = Path(config.output_dir)
    address = push_adapter(output / "adapter", config.hub_model_id or output.resolve().name)
    print(f"adapter uploaded to {address}")
    return address


def aggregate_seeds(results: list[dict]) -> dict:
    """Mean and sample standard deviation over runs that differ only in their seed (std is null for one run).

    Returns ``{"task", "method", "seeds", "protocol", "metrics": {name: {"mean", "std"}}}`` for the metrics after
    training.

    Raises:
        InputError: the results differ in task, method, protocol or metrics, or a seed appears twice.
    """
    seeds = [result["seed"] for result in results]
    if not results or len(set(seeds)) < len(seeds):
        raise InputError(f"mean over seeds: expected one result per seed, got seeds {seeds}")
    first = results[0]
    for key in ("task", "method", "protocol"):
        if len({result[key] for result in results}) > 1:
            raise InputError(f"mean over seeds: the runs differ in {key}: {sorted({r[key] for r in results})}")
    values = {name: [result["metrics"]["after"].get(name) for result in results] for name in first["metrics"]["after"]}
    for name, column in values.items():
        if None in column:
            raise InputError(f"mean over seeds: {name} is missing or not finite for seed {seeds[column.index(None)]}")
    metrics = {n: {"mean": mean(v), "std": stdev(v) if len(v) > 1 else None} for n, v in values.items()}
    return {**{key: first[key] for key in ("task", "method", "protocol")}, "seeds": seeds, "metrics": metrics}


def plot_loss(
    path: str | Path,
    history: dict[str, list[float]],
    validation: Sequence[tuple[int, float]] = (),
    held_out: bool = True,
) -> None:
    """Plot the loss of every step (light) and its running mean as a PNG, and below them the validation loss, if any.

    ``held_out``: whether the samples of the validation loss are not used for training.
    """
    label = "fixed held-out samples" if held_out else "fixed training samples"
    loss = torch.tensor(history["loss"], dtype=torch.float64)
    window = min(len(loss), max(3, len(loss) // 25))
    steps = torch.arange(1, len(loss) + 1)
    with saved_figure(path, (7.2, 5.4 if validation else 3.6)) as figure:
        top, *rest = figure.subplots(2 if validation else 1, sharex=True, squeeze=False)[:, 0]
        top.plot(steps, loss, color="#b9cce6", linewidth=0.8, label="each step")
        mean_loss = loss.unfold(0, window, 1).mean(1)
        top.plot(steps[window - 1 :], mean_loss, color="#1f4e8c", label=f"mean of {window} steps")
        top.set_ylabel("training loss")
        if len(loss) > 20 and bool(loss.isfinite().all()):  # keep a few outliers from flattening the rest
            low, high = loss.quantile(torch.tensor([0.005, 0.995], dtype=torch.float64)).tolist()
            margin = 0.08 * (high - low) or 0.1
            top.set_ylim(min(low, mean_loss.min().item()) - margin, max(high, mean_loss.max().item()) + margin)
        for axes in rest:
            axes.plot(*zip(*validation), marker="o", markersize=3.5, color="#c4570e", label=label)
            axes.set_ylabel("validation loss" if held_out else "loss, same noise each time")
        for axes in (top, *rest):
            axes.legend(frameon=False)
            axes.grid(alpha=0.2)
        (rest or [top])[-1].set_xlabel("step")
        top.xaxis.get_major_locator().set_params(integer=True)


def print_plan(config: TrainingConfig, model: nn.Module, num_samples: int, accelerator: Accelerator) -> None:
    """Print once what a run will do: trained parameters, adapter file size, steps, epochs and samples."""
    if not accelerator.is_main_process:
        return
    num_processes = accelerator.num_processes
    counts, tensors = count_parameters(model), trained_parameters(model)
    steps, per_step = total_steps(config, num_samples, num_processes), samples_per_step(config, num_processes)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained, adapter = counts["trainable_parameters"], counts["adapter_parameters"]
    print(f"method                {config.method}")
    print(
        f"trainable parameters  {trained:,} of {total:,} ({trained / total:.3%}), {adapter:,} of them in the adapter"
    )
    print(f"adapter file          about {4 * trained + 100 * len(tensors):,} bytes in fp32")
    print(f"training samples      {num_samples:,}")
    print(f"samples per step      {per_step:,} on {num_processes} process{'es' if num_processes > 1 else ''}")
    print(f"steps                 {steps:,}, {steps * per_step / num_samples:.2f} epochs")
    print(f"output                {config.output_dir}", flush=True)


def print_outcome(results: dict, output_dir: str | Path) -> None:
    """Print the summary at the end of a run: metrics before and after, files, and the command that uses the adapter."""
    output = Path(output_dir)
    columns, after = dict(results["metrics"]), results["metrics"]["after"]
    if results.get("best"):
        columns[f"best ({results['best']['step']})"] = results["best"]["metrics"]
    if after:
        width = max(len(name) for name in after)
        print(f"\n{results['protocol']}")
        if results.get("retention"):
            print(f"{RETENTION}*: {results['retention']}")
        print(" " * (width + 3) + "".join(f" {title:>10}" for title in columns))
        for name in after:
            cells = "".join(f" {_shown(metrics.get(name)):>10}" for metrics in columns.values())
            print(f"{name:<{width}}  {arrow(name)}{cells}")
    print(f"\n{results['trainable_parameters']:,} parameters trained; the run took {results['seconds_total']:.0f} s")
    ledger = Ledger.read(output)
    written = sorted(name for name in ledger.hashes if Path(name).suffix in _SHOWN_FILES) if ledger else []
    pages, others = (
        [name for name in written if "/" not in name and (Path(name).suffix == ".html") == is_page]
        for is_page in (True, False)
    )
    for name in (*pages, "adapter", "best", *others):
        if (output / name).exists():
            print(f"  {output / name}")
    task = TASKS.get(results["task"])
    command = task.command if task else "onelora inspect {adapter}"
    print(f"next: {command.format(adapter=output / 'adapter')}")


_SHOWN_FILES = (".json", ".png", ".html")


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
