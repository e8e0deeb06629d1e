"""Benchmarks that consist of several tasks: a sweep for each available task, and one table with the means."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from onelora_vision.data.classes import fgvc, vtab
from onelora_vision.errors import InputError
from onelora_vision.metrics.direction import is_retention
from onelora_vision.plots.tables import markdown_lines
from onelora_vision.storage.files import atomic_file
from onelora_vision.sweep.plan import Sweep, claim
from onelora_vision.sweep.report import further_metrics, rows_of


class Benchmark(NamedTuple):
    """A benchmark of `data.classes.formats.BENCHMARKS`.

    Attributes:
        title: its usual name. tasks: all of its tasks, in the order of tables.
        tasks_in: finds the tasks in a folder.
        lists: the file that each task's folder contains, for messages.
        groups: groups of tasks whose means are also in the table; the last mean is then the mean of the groups' means.
        joins_validation: whether the final runs also train on the validation split.
    """

    title: str
    tasks: Sequence[str]
    tasks_in: Callable[[Path], list[str]]
    lists: str
    groups: Mapping[str, Sequence[str]]
    joins_validation: bool


BENCHMARKS = {
    "vtab": Benchmark("VTAB-1k", vtab.TASKS, vtab.tasks_in, "train800.txt", vtab.GROUPS, joins_validation=True),
    # VPT's own code trains the final models for FGVC on the training split only.
    "fgvc": Benchmark("FGVC", tuple(fgvc.DATASETS), fgvc.tasks_in, "train.json", {}, joins_validation=False),
}


def benchmark_of(dataset_name: str | None) -> Benchmark | None:
    """The benchmark that a dataset is, or that it is a task of."""
    return BENCHMARKS.get((dataset_name or "").partition("/")[0])


def tasks_in(benchmark: Benchmark, folder: Path) -> list[str]:
    """The tasks available in ``folder``, in the order of tables.

    Raises:
        InputError: there are none.
    """
    found = benchmark.tasks_in(folder)
    if not found:
        raise InputError(
            f"{folder}: no folder of a task of {benchmark.title} with {benchmark.lists} in it "
            f"({', '.join(benchmark.tasks)})"
        )
    return found


def sweep_tasks(name: str, sweeps: Mapping[str, Sweep], folder: Path, run: Callable[[Sweep], None]) -> Path:
    """``run`` each sweep of the benchmark ``name``, and update ``table.md`` after each; returns its path.

    Raises:
        InputError: ``folder`` contains something else. Also anything raised by ``run``.
    """
    path = folder / "table.md"
    claim(folder, {"tasks": name})
    for sweep in sweeps.values():
        run(sweep)
        with atomic_file(path) as temporary:
            temporary.write_text(table(BENCHMARKS[name], sweeps), encoding="utf-8")
    return path


def table(benchmark: Benchmark, sweeps: Mapping[str, Sweep]) -> str:
    """Test metrics in percent: one row per method, one column per task with the deviation over seeds, then the means.

    The means are those of the groups, if any, and one overall mean. If the runs measure metrics on the base's old data,
    their means over the tasks come last.
    """
    rows = {task: {row["method"]: row for row in rows_of(sweep)} for task, sweep in sweeps.items()}
    methods = list(dict.fromkeys(method for sweep in sweeps.values() for method in sweep.methods))
    kept = list(
        dict.fromkeys(filter(is_retention, (name for sweep in sweeps.values() for name in further_metrics(sweep))))
    )
    heads = ["method", *sweeps, *benchmark.groups, "mean of groups" if benchmark.groups else "mean", *kept]
    lines = markdown_lines(heads, (_row(benchmark, method, rows, kept) for method in methods))
    note = (
        f"{len(sweeps)} of {len(benchmark.tasks)} tasks; test metrics in percent; for each task, mean ± standard deviation over "
        f"{_seeds_of(rows)}. Means are over the available tasks, and empty if a result is missing."
    )
    return "\n".join(lines) + f"\n\n{note}\n"


def _row(benchmark: Benchmark, method: str, rows: Mapping[str, Mapping[str, dict]], kept: Sequence[str]) -> list[str]:
    mine = {task: found.get(method, {}) for task, found in rows.items()}
    figures = {task: row.get("test_mean") for task, row in mine.items()}
    groups = [[figures[task] for task in group if task in figures] for group in benchmark.groups.values()]
    means = [_mean(values) for values in groups]
    known = [mean for mean, values in zip(means, groups) if values] if groups else [*figures.values()]
    left = [_mean([row.get("more", {}).get(name, (None, None))[0] for row in mine.values()]) for name in kept]
    tasks = [_percent(row.get("test_mean"), row.get("test_std")) for row in mine.values()]
    return [method, *tasks, *(_percent(value) for value in (*means, _mean(known), *left))]


def _seeds_of(rows: Mapping[str, Mapping[str, dict]]) -> str:
    """Number of seeds of the cells."""
    counts = {row["seeds"] for found in rows.values() for row in found.values()} or {0}
    least, most = min(counts), max(counts)
    return f"{most} seed{'s' * (most != 1)}" if least == most else f"{least} to {most} seeds"


def _mean(values: Sequence[float | None]) -> float | None:
    return statistics.fmean(values) if values and None not in values else None


def _percent(value: float | None, std: float | None = None) -> str:
    return ("" if value is None else f"{100 * value:.1f}") + ("" if std is None else f" ± {100 * std:.1f}")
