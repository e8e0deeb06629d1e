"""The tables, plots and page of a sweep, made from the runs that are done; each start of the sweep writes them anew."""

import csv
import datetime
import io
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from onelora_vision.metrics.direction import arrow, higher_is_better
from onelora_vision.plots.figures import saved_figure
from onelora_vision.plots.html import embedded_picture, render
from onelora_vision.plots.tables import markdown_lines
from onelora_vision.storage.files import atomic_file
from onelora_vision.sweep.plan import Sweep

TABLE, CSV, PAGE = "table.md", "table.csv", "index.html"
PLOTS = {
    "rates.png": "Each method at each learning rate",
    "parameters.png": "What is trained",
    "time.png": "What a step costs",
}
COLUMNS = ("method", "learning_rate", "inside", "adapter_parameters", "trainable_parameters", "validation", "test_mean",
           "test_std", "seeds", "seconds_per_step", "peak_memory_bytes")  # fmt: skip


def rows_of(sweep: Sweep) -> list[dict[str, Any]]:
    """A row per method whose rate is known, the best first; ``test_mean`` and ``test_std`` are over the seeds done."""
    rows = []
    for method in sweep.methods:
        best = sweep.best_trial(method)
        if best is None:
            continue
        trial = sweep.result(best)
        finals = [result for run in sweep.finals(method) if (result := sweep.result(run)) and "failed" not in result]
        name = sweep.metric_of(trial)
        figures = [value for result in finals if (value := result["metrics"]["after"][name]) is not None]
        runs = finals or [trial]
        rows.append(
            {
                "method": method,
                "learning_rate": best.rate,
                "inside": sweep.is_inside(method),
                **{key: trial[key] for key in ("adapter_parameters", "trainable_parameters")},
                "validation": sweep.figure(best),
                "test_mean": statistics.fmean(figures) if figures else None,
                "test_std": statistics.stdev(figures) if len(figures) > 1 else None,
                "seeds": len(figures),
                "seconds_per_step": statistics.median(result["seconds_per_step"] for result in runs),
                "peak_memory_bytes": max(result["peak_memory_bytes"] for result in runs),
            }
        )
    is_higher = bool(higher_is_better(metric_of(sweep) or ""))
    worst = float("-inf") if is_higher else float("inf")
    return sorted(rows, key=lambda row: worst if row["test_mean"] is None else row["test_mean"], reverse=is_higher)


def metric_of(sweep: Sweep) -> str | None:
    """The metric that counts, once a run is done."""
    done = (sweep.result(run) for run in sweep.runs())
    return next((sweep.metric_of(result) for result in done if result and "failed" not in result), sweep.metric)


def write_report(sweep: Sweep) -> list[dict[str, Any]]:
    """Write ``table.md``, ``table.csv``, the plots and ``index.html`` into the sweep's folder; returns `rows_of`."""
    rows, metric = rows_of(sweep), metric_of(sweep)
    if not rows:
        return rows
    _write(sweep.folder / TABLE, markdown(sweep, rows, metric))
    _write(sweep.folder / CSV, _csv(rows))
    _plot_rates(sweep, metric, sweep.folder / "rates.png")
    for name, key, label in (
        ("parameters.png", "adapter_parameters", "trained values without the head"),
        ("time.png", "seconds_per_step", "seconds per step"),
    ):
        _plot_cost(rows, metric, key, label, sweep.folder / name)
    _write(sweep.folder / PAGE, _page(sweep, rows, metric))
    return rows


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cells_of(row: dict[str, Any]) -> list[str]:
    """A row as texts."""
    test = "" if row["test_mean"] is None else f"{row['test_mean']:.4g}"
    spread = "" if row["test_std"] is None else f" ± {row['test_std']:.2g}"
    return [
        row["method"],
        f"{row['learning_rate']:g}{'' if row['inside'] else ' (edge)'}",
        f"{row['adapter_parameters']:,}",
        f"{row['validation']:.4g}",
        test + spread,
        str(row["seeds"]),
        f"{row['seconds_per_step']:.3g}",
        f"{row['peak_memory_bytes'] / 1e6:,.0f}",
    ]


def heads_of(metric: str) -> list[str]:
    """The heads of the table."""
    return ["method", "rate", "values", f"validation {metric} {arrow(metric)}", f"test {metric} {arrow(metric)}", "seeds",
            "s / step", "peak MB"]  # fmt: skip


def note_of(sweep: Sweep, rows: list[dict[str, Any]]) -> str:
    """How the figures were made, and what is missing."""
    missing, failed = len(sweep.missing()), [run for run in sweep.runs() if "failed" in (sweep.result(run) or {})]
    parts = [
        f"Rates were chosen on the validation split with seed {sweep.seeds[0]}; the test split was looked at once per seed, at "
        "that rate. Values: trained, without the head."
    ]
    if any(not row["inside"] for row in rows):
        parts.append("(edge): no rate beyond it was tried, so a better one may lie there.")
    if failed:
        parts.append(f"{len(failed)} runs gave no numbers: their rates are too great.")
    if missing:
        parts.append(f"{missing} runs are missing; the same command goes on.")
    return " ".join(parts)


def markdown(sweep: Sweep, rows: list[dict[str, Any]], metric: str) -> str:
    """The table with its note."""
    table = "\n".join(markdown_lines(heads_of(metric), map(cells_of, rows)))
    flags = " ".join(sweep.flags)
    return f"# {sweep.task}{f', {flags}' if flags else ''}\n\n{table}\n\n{note_of(sweep, rows)}\n"


def _csv(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _plot_rates(sweep: Sweep, metric: str, path: Path) -> None:
    with saved_figure(path, (8, 4.5)) as figure:
        axes = figure.subplots()
        for method in sweep.methods:
            points = [(run.rate, value) for run in sweep.trials(method) if (value := sweep.figure(run)) is not None]
            if points:
                axes.plot(*zip(*points), marker="o", markersize=4, label=method)
        axes.set(xscale="log", xlabel="learning rate", ylabel=f"{metric} {arrow(metric)} on the validation split")
        axes.legend(fontsize=8, ncols=1 + len(sweep.methods) // 12, loc="center left", bbox_to_anchor=(1, 0.5))
        axes.grid(alpha=0.3)


def _plot_cost(rows: Sequence[dict], metric: str, key: str, label: str, path: Path) -> None:
    with saved_figure(path, (8, 4.5)) as figure:
        axes = figure.subplots()
        for row in rows:
            value = row["validation"] if row["test_mean"] is None else row["test_mean"]
            axes.errorbar(row[key], value, yerr=row["test_std"] or 0, marker="o", capsize=3)
            axes.annotate(row["method"], (row[key], value), textcoords="offset points", xytext=(5, 4), fontsize=8)
        axes.set(xlabel=label, ylabel=f"{metric} {arrow(metric)}")
        if key == "adapter_parameters":
            axes.set_xscale("symlog", linthresh=10)
        axes.margins(x=0.15)
        axes.grid(alpha=0.3)


def _page(sweep: Sweep, rows: list[dict[str, Any]], metric: str) -> str:
    reports = {row["method"]: _report_of(sweep, row) for row in rows}
    return render(
        "sweep.html",
        task=sweep.task,
        flags=" ".join(sweep.flags),
        heads=heads_of(metric),
        rows=[{"cells": cells_of(row), "link": reports[row["method"]]} for row in rows],
        note=note_of(sweep, rows),
        plots=[(title, embedded_picture(sweep.folder / name)) for name, title in PLOTS.items()],
        date=datetime.date.today().isoformat(),
    )


def _report_of(sweep: Sweep, row: dict[str, Any]) -> str | None:
    """The report of the method's first run that has one, as a link from the page."""
    places = [
        sweep.place(run) / "report.html" for run in [*sweep.finals(row["method"]), sweep.best_trial(row["method"])]
    ]
    found = next((place for place in places if place.is_file()), None)
    return quote(os.path.relpath(found, sweep.folder)) if found else None
