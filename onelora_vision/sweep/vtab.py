"""VTAB-1k as a whole: a sweep for each of its tasks that is there, and the usual table with the means of its groups."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onelora_vision.data.classes.vtab import GROUPS, TASKS
from onelora_vision.errors import InputError
from onelora_vision.plots.tables import markdown_lines
from onelora_vision.storage.files import atomic_file
from onelora_vision.sweep.plan import Sweep, claim
from onelora_vision.sweep.report import rows_of


def tasks_in(folder: Path) -> list[str]:
    """The tasks of which ``folder`` has lists, in the order of tables.

    Raises:
        InputError: there are none.
    """
    found = [task for task in TASKS if (folder / task / "train800.txt").is_file()]
    if not found:
        raise InputError(f"{folder}: no folder of a task of VTAB-1k with train800.txt in it ({', '.join(TASKS)})")
    return found


def sweep_tasks(sweeps: Mapping[str, Sweep], folder: Path, run: Callable[[Sweep], None]) -> Path:
    """``run`` each sweep, and write ``table.md`` with what is there after each; returns its path.

    Raises:
        InputError: ``folder`` holds something else. What ``run`` raises.
    """
    path = folder / "table.md"
    claim(folder, {"tasks": "vtab"})
    for sweep in sweeps.values():
        run(sweep)
        with atomic_file(path) as temporary:
            temporary.write_text(table(sweeps), encoding="utf-8")
    return path


def table(sweeps: Mapping[str, Sweep]) -> str:
    """Test figures in percent: a row per method, a column per task, then the means of the groups and of the groups' means."""
    figures = {task: {row["method"]: row["test_mean"] for row in rows_of(sweep)} for task, sweep in sweeps.items()}
    methods = list(dict.fromkeys(method for sweep in sweeps.values() for method in sweep.methods))
    lines = markdown_lines(
        ["method", *sweeps, *GROUPS, "mean of groups"], (_row(method, figures) for method in methods)
    )
    note = f"{len(sweeps)} of {len(TASKS)} tasks. A mean is of the tasks that are there, and empty where one of them is missing."
    return "\n".join(lines) + f"\n\n{note}\n"


def _row(method: str, figures: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    mine = {task: found.get(method) for task, found in figures.items()}
    groups = [_mean([mine[task] for task in group if task in mine]) for group in GROUPS.values()]
    known = [mean for mean, group in zip(groups, GROUPS.values()) if any(task in mine for task in group)]
    return [method, *(_percent(value) for value in (*mine.values(), *groups, _mean(known)))]


def _mean(values: Sequence[float | None]) -> float | None:
    return statistics.fmean(values) if values and None not in values else None


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
