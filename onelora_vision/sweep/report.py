"""The tables, plots and page of a sweep, made from its completed runs and rewritten at each start of the sweep."""

import csv
import datetime
import io
import math
import os
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from onelora_vision.metrics.direction import arrow, higher_is_better, is_retention
from onelora_vision.plots.figures import saved_figure
from onelora_vision.plots.html import embedded_picture, render
from onelora_vision.plots.tables import markdown_lines
from onelora_vision.storage.files import atomic_file
from onelora_vision.sweep.plan import Sweep
from onelora_vision.training.results import shown_metric

TABLE, CSV, PAGE = "table.md", "table.csv", "index.html"
PLOTS = {
    "rates.png": "Each method at each learning rate",
    "parameters.png": "Trained parameters",
    "time.png": "Cost of a step",
}
COLUMNS = ("method", "learning_rate", "inside", "adapter_parameters", "trainable_parameters", "validation", "test_mean",
           "test_std", "seeds", "seconds_per_step", "peak_memory_bytes")  # fmt: skip


def rows_of(sweep: Sweep) -> list[dict[str, Any]]:
    """One row per arm whose rate is known, best first; ``test_mean`` and ``test_std`` are over the completed seeds.

    ``more`` has mean and standard deviation of the table's further metrics after training, by name.
    """
    rows, further = [], further_metrics(sweep)
    for name in sweep.arms:
        best = sweep.best_trial(name)
        finals = [result for run in sweep.finals(name) if (result := sweep.result(run)) and "failed" not in result]
        runs = finals or ([sweep.result(best)] if best in sweep.trials(name) else [])
        if not runs:
            continue
        metric = sweep.metric_of(runs[0])
        mean, std = _spread(finals, metric)
        rows.append(
            {
                "method": name,
                "learning_rate": best.rate,
                "inside": sweep.is_inside(name),
                **{key: runs[0][key] for key in ("adapter_parameters", "trainable_parameters")},
                "validation": sweep.figure(best) if best in sweep.trials(name) else None,
                "test_mean": mean,
                "test_std": std,
                "seeds": len(finals),
                "seconds_per_step": statistics.median(result["seconds_per_step"] for result in runs),
                "peak_memory_bytes": max(result["peak_memory_bytes"] for result in runs),
                "more": {more: _spread(finals, more) for more in further},
            }
        )
    is_higher = bool(higher_is_better(metric_of(sweep) or ""))
    worst = float("-inf") if is_higher else float("inf")
    return sorted(rows, key=lambda row: worst if row["test_mean"] is None else row["test_mean"], reverse=is_higher)


def _spread(results: Sequence[dict], metric: str) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation over runs; None if there are too few numbers."""
    values = [value for result in results if (value := result["metrics"]["after"].get(metric)) is not None]
    return statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def metric_of(sweep: Sweep) -> str | None:
    """The metric that is compared, once a run is complete."""
    done = _first_result(sweep)
    return sweep.metric_of(done) if done else sweep.metric


def further_metrics(sweep: Sweep) -> list[str]:
    """The table's other metrics: the requested ones, and all that are measured on the base's old data."""
    done = _first_result(sweep)
    measured = filter(is_retention, done["metrics"]["after"]) if done else ()
    return list(dict.fromkeys([*sweep.more_metrics, *measured]))


def _first_result(sweep: Sweep) -> dict | None:
    done = (sweep.result(run) for run in sweep.runs())
    return next((result for result in done if result and "failed" not in result), None)


def write_report(sweep: Sweep) -> list[dict[str, Any]]:
    """Write ``table.md``, ``table.csv``, the plots and ``index.html`` to the sweep's folder; returns `rows_of`."""
    rows, metric = rows_of(sweep), metric_of(sweep)
    if not rows:
        return rows
    _write(sweep.folder / TABLE, markdown(sweep, rows))
    _write(sweep.folder / CSV, _csv(sweep, rows))
    plot_rates(sweep, sweep.folder / "rates.png")
    for name, key, label in (
        ("parameters.png", "adapter_parameters", "trained parameters without the head"),
        ("time.png", "seconds_per_step", "seconds per step"),
    ):
        _plot_cost(rows, metric, key, label, sweep.folder / name)
    _write(sweep.folder / PAGE, _page(sweep, rows))
    return rows


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cells_of(row: dict[str, Any]) -> list[str]:
    """A row as strings."""
    return [
        row["method"],
        f"{row['learning_rate']:g}{'' if row['inside'] else ' (edge)'}",
        f"{row['adapter_parameters']:,}",
        "" if row["validation"] is None else f"{row['validation']:.4g}",
        shown_spread(row["test_mean"], row["test_std"]),
        *(shown_spread(*found) for found in row["more"].values()),
        str(row["seeds"]),
        f"{row['seconds_per_step']:.3g}",
        f"{row['peak_memory_bytes'] / 1e6:,.0f}",
    ]


def shown_spread(mean: float | None, std: float | None) -> str:
    """Mean ± standard deviation, as far as known."""
    return ("" if mean is None else f"{mean:.4g}") + ("" if std is None else f" ± {std:.2g}")


def heads_of(sweep: Sweep) -> list[str]:
    """The table's column heads."""
    metric = metric_of(sweep)
    more = [f"{name} {arrow(name)}" for name in further_metrics(sweep)]
    return ["method", "rate", "parameters", f"validation {metric} {arrow(metric)}", f"test {metric} {arrow(metric)}", *more,
            "seeds", "s / step", "peak MB"]  # fmt: skip


def note_of(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    """How the results were obtained, and what is missing."""
    missing, failed = len(sweep.missing()), [run for run in sweep.runs() if "failed" in (sweep.result(run) or {})]
    parts = [
        f"Rates were chosen on the validation split with seed {sweep.seeds[0]}; the test split was used once per seed, at "
        "that rate. Parameters: trained, without the head."
    ]
    if any(arm.rate_of for arm in sweep.arms.values()):
        parts.append("x@y: x at the best rate of y.")
    if any(not row["inside"] for row in rows):
        parts.append("(edge): no rate beyond it was tried, so there may be a better one.")
    for name in filter(is_retention, further_metrics(sweep)):
        before = _first_result(sweep)["metrics"]["before"].get(name)
        parts.append(f"Before training, {name} is {shown_metric(before)}.")
    if failed:
        parts.append(f"{len(failed)} runs gave no numbers: their rates are too high.")
    if missing:
        parts.append(f"{missing} runs are missing; the same command resumes the sweep.")
    return " ".join(parts)


def markdown(sweep: Sweep, rows: list[dict[str, Any]], level: int = 1) -> str:
    """The table, or one for each section, with its note."""
    flags = " ".join(sweep.flags)
    parts = [f"{'#' * level} {sweep.task}{f', {flags}' if flags else ''}"]
    for title, names in _sections(sweep):
        table = markdown_lines(heads_of(sweep), (cells_of(row) for row in rows if row["method"] in names))
        parts += [*([f"**{title}**"] if title else []), "\n".join(table)]
    return "\n\n".join([*parts, note_of(sweep, rows)]) + "\n"


def _sections(sweep: Sweep) -> list[tuple[str, Collection[str]]]:
    """Titles and arms of the tables; without sections, one table without a title. Arms in no section come last."""
    if not sweep.sections:
        return [("", sweep.arms)]
    others = [name for name in sweep.arms if not any(name in names for names in sweep.sections.values())]
    return [*sweep.sections.items(), *([("Others", others)] if others else [])]


def _csv(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    more = [f"{name}_{what}" for name in further_metrics(sweep) for what in ("mean", "std")]
    writer = csv.DictWriter(stream, [*COLUMNS, *more], lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        numbers = {
            f"{name}_{what}": value
            for name, found in row["more"].items()
            for what, value in zip(("mean", "std"), found)
        }
        writer.writerow(row | numbers)
    return stream.getvalue()


def plot_rates(sweep: Sweep, path: Path) -> None:
    """One curve per arm of the first section. The axis covers each arm's best two rates and cuts off diverged runs."""
    metric, names = metric_of(sweep), next(iter(sweep.sections.values()), list(sweep.arms))
    curves = {name: [(run.rate, value) for run in sweep.trials(name) if (value := sweep.figure(run)) is not None]
              for name in names}  # fmt: skip
    best = [
        sorted((value for _, value in points), reverse=bool(higher_is_better(metric)))[:2]
        for points in curves.values()
    ]
    shown = [value for values in best for value in values if math.isfinite(value)]
    with saved_figure(path, (8, 4.5)) as figure:
        axes = figure.subplots()
        for number, (name, points) in enumerate(curves.items()):
            if points:
                style = ("-", "--", ":")[number // 10 % 3]
                axes.plot(
                    *zip(*points), marker="o", markersize=4, label=name, color=f"C{number % 10}", linestyle=style
                )
        axes.set(xscale="log", xlabel="learning rate", ylabel=f"{metric} {arrow(metric)} on the validation split")
        if shown and min(shown) < max(shown):
            margin = 0.05 * (max(shown) - min(shown))
            axes.set_ylim(min(shown) - margin, max(shown) + margin)
        axes.legend(fontsize=8, ncols=1 + len(curves) // 13, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.grid(alpha=0.3)


def _plot_cost(rows: Sequence[dict], metric: str, key: str, label: str, path: Path) -> None:
    with saved_figure(path, (8, 4.5)) as figure:
        axes = figure.subplots()
        for row in rows:
            value = row["validation"] if row["test_mean"] is None else row["test_mean"]
            axes.errorbar(row[key], value, yerr=row["test_std"] or 0, marker="o", capsize=3)
            axes.annotate(row["method"], (row[key], value), textcoords="offset points", xytext=(5, 4), fontsize=8)
        axes.set(xlabel=label, ylabel=f"{metric} {arrow(metric)}", title=PLOTS[path.name])
        values = [row[key] for row in rows]
        if key == "adapter_parameters" and max(values) > 10 * max(1, min(values)):
            axes.set_xscale("symlog", linthresh=10)
        elif key == "adapter_parameters":
            axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)


def _page(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    reports = {row["method"]: _report_of(sweep, row) for row in rows}
    return render(
        "sweep.html",
        task=sweep.task,
        flags=" ".join(sweep.flags),
        heads=heads_of(sweep),
        count=len(rows),
        tables=[
            (
                title,
                [{"cells": cells_of(row), "link": reports[row["method"]]} for row in rows if row["method"] in names],
            )
            for title, names in _sections(sweep)
        ],
        note=note_of(sweep, rows),
        plots=[(title, embedded_picture(sweep.folder / name)) for name, title in PLOTS.items()],
        date=datetime.date.today().isoformat(),
    )


def _report_of(sweep: Sweep, row: dict[str, Any]) -> str | None:
    """A link from the page to the report of the method's first run that has one."""
    places = [
        sweep.place(run) / "report.html" for run in [*sweep.finals(row["method"]), sweep.best_trial(row["method"])]
    ]
    found = next((place for place in places if place.is_file()), None)
    return quote(os.path.relpath(found, sweep.folder)) if found else None
