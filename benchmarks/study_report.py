"""What the study's cells say: tables in Markdown and pictures, from the result files alone."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

from benchmarks.cells import (
    ABLATION,
    ATTENTION,
    COMPRESSIONS,
    FEW_SHOT_METHODS,
    JOBS,
    LAYERS_METHODS,
    METHODS,
    RATES,
    SEEDS,
    SHOTS,
    Cell,
    Variant,
    best_rate,
    figure,
    final_cells,
    load_study,
    load_times,
    methods_of,
    rates_of,
    sweep_cells,
)
from onelora_vision.plots.figures import saved_figure
from onelora_vision.plots.tables import markdown_lines
from onelora_vision.storage.files import atomic_file

Results = dict[Cell, dict]
COLUMNS = {  # figure: (heading, factor, digits)
    "classification": {"top1": ("top-1 %", 100, 2), "nll": ("NLL", 1, 3), "ece": ("ECE %", 100, 2)},
    "depth": {"abs_rel": ("AbsRel", 1, 3), "rmse": ("RMSE m", 1, 2), "delta1": ("δ1 %", 100, 1)},
    "generation": {"fd_embedded": ("fd_embedded", 1, 2), "class_accuracy": ("class accuracy %", 100, 1)},
}
COLORS = dict(zip(METHODS, ("#7f7f7f", "#c0392b", "#e67e22", "#f1c40f", "#b7950b", "#1f4e8c", "#2e86c1", "#76d7c4", "#6c3483", "#af7ac5", "#1c2833")))  # fmt: skip


def write_report(folder: Path, docs: Path, jobs: Sequence[str]) -> None:
    """``docs/study-tables.md``, and pictures in ``docs/images/study-*.png``."""
    results, times = load_study(folder, jobs)[1], load_times(folder)
    text = ["<!-- written by `python -m benchmarks.study report`; do not edit -->", "# Study: tables", ""]
    for job in jobs:
        sections = [
            ("methods, mean ± std over seeds 0, 1, 2 at the best rate", method_table(results, job, times)),
            (f"validation {JOBS[job].metric} by learning rate, seed 0", rate_table(results, job)),
            ("sets of {sum, bias, scale, norms} at 1LoRA's best rate, seed 0", ablation_table(results, job)),
            ("attention only and all layers, mean ± std over seeds", layers_table(results, job)),
            ("1LoRA's compression, mean ± std over seeds at the best rate", compression_table(results, job)),
            (
                f"the same: validation {JOBS[job].metric} by learning rate, seed 0",
                compression_rate_table(results, job),
            ),
        ]
        text += [f"## {job.capitalize()}", ""]
        for title, rows in sections:
            if len(rows) > 1:
                text += [f"**{title[0].upper() + title[1:]}**", "", *markdown(rows), ""]
        images = docs / "images"
        for name, draw in (("bubbles", draw_bubbles), ("rates", draw_rates)):
            if draw(images / f"study-{job}-{name}.png", results, job, times):
                text += [f"![{job}: {name}](images/study-{job}-{name}.png)", ""]
    if "classification" in jobs and draw_few_shot(docs / "images" / "study-few-shot.png", results):
        text += ["## Images per class (classification, top-1 %)", "", *markdown(few_shot_table(results)), ""]
        text += ["![Top-1 by images per class](images/study-few-shot.png)", ""]
    with atomic_file(docs / "study-tables.md") as temporary:
        temporary.write_text("\n".join(text))
    print(f"{len(results)} cells; tables in {docs / 'study-tables.md'}, pictures in {docs / 'images'}")


def final_results(results: Results, job: str, method: str, variant: Variant = (), extra: Variant = ()) -> list[dict]:
    """The finished test runs at the method's best rate, by seed; those that broke off are left out."""
    cells = final_cells(results, job, method, variant, extra)
    return [results[cell] for cell in cells if "metrics" in results.get(cell, {})]


def spread(values: Sequence[float | None], factor: float = 1, digits: int = 2) -> str:
    """Mean ± sample standard deviation."""
    if not values or None in values:
        return "–"
    shown = f"{factor * mean(values):.{digits}f}"
    return f"{shown} ± {factor * stdev(values):.{digits}f}" if len(values) > 1 else shown


def figures_of(runs: Sequence[dict], job: str, when: str = "after") -> list[str]:
    """The job's figures over the seeds, as they stand in tables."""
    return [spread([run["metrics"][when].get(name) for run in runs], *how[1:]) for name, how in COLUMNS[job].items()]


def headings(job: str) -> list[str]:
    return [heading for heading, _, _ in COLUMNS[job].values()]


def counts_of(run: dict) -> list[str]:
    """Trained values, and those of the adapter alone."""
    return [f"{run[key]:,}" for key in ("trainable_parameters", "adapter_parameters")]


def method_table(results: Results, job: str, times: dict | None = None) -> list[list[str]]:
    """One row per method: its rate, values, figures, time of a step, memory."""
    steps = (times or {}).get(job, {}).get("step", {})
    rows = [["method", "rate", "values", "adapter's", *headings(job), "step / frozen", "peak MB"]]
    for method in methods_of(job):
        runs = final_results(results, job, method)
        if not runs:
            continue
        if len(rows) == 1:
            rows.append(["base", "", "", "", *figures_of(runs[:1], job, "before"), "", ""])
        time = f"{steps[method]['median']:.2f}" if method in steps else "–"
        peak = f"{mean(run['peak_memory_bytes'] for run in runs) / 1e6:.0f}"
        rate = f"{runs[0]['config']['learning_rate']:g}"
        rows.append([method, rate, *counts_of(runs[0]), *figures_of(runs, job), time, peak])
    return rows


def rate_row(results: Results, job: str, name: str, method: str, variant: Variant = ()) -> list[str] | None:
    """The validation figure at each rate, the best in bold, and how wide the good range is; None if cells lack."""
    _, factor, digits = COLUMNS[job][JOBS[job].metric]
    cells = sweep_cells(job, method, variant)
    if not all(cell in results for cell in cells):
        return None
    values, best = [figure(results[cell], job) for cell in cells], best_rate(results, job, method, variant)
    shown = ["–" if v is None else f"{factor * v:.{digits}f}" for v in values]
    shown = [f"**{text}**" if cell.learning_rate == best else text for cell, text in zip(cells, shown)]
    return [name, *shown, f"{good_rates(values, job)} of {len(values)}"]


def rate_table(results: Results, job: str) -> list[list[str]]:
    """The sweep: one row per method."""
    rows = [rate_row(results, job, method, method) for method in methods_of(job)]
    return [["method", *(f"{rate:g}" for rate in RATES), good_heading(job)], *filter(None, rows)]


def good_heading(job: str) -> str:
    return f"good rates (within 10 % of the best{' error' if JOBS[job].greater_is_better else ''})"


def compression_table(results: Results, job: str) -> list[list[str]]:
    """One row per compression: its rate, figures, and the seconds that its vectors took."""
    rows = [["compression", "rate", *headings(job), "vectors, s"]]
    for name, variant in {"sum": (), **COMPRESSIONS}.items():
        runs = final_results(results, job, "onelora", variant)
        if runs:
            seconds = f"{mean(run.get('seconds_of_calibration', 0) for run in runs):.2f}"
            rows.append([name, f"{runs[0]['config']['learning_rate']:g}", *figures_of(runs, job), seconds])
    return rows if len(rows) > 2 else rows[:1]  # the sum alone compares with nothing


def compression_rate_table(results: Results, job: str) -> list[list[str]]:
    """The sweep of the compressions, whose rates differ with the length of their vectors."""
    rows = [["compression", "rates", "first", "second", "third", "fourth", "fifth", good_heading(job)]]
    for name, variant in {"sum": (), **COMPRESSIONS}.items():
        row = rate_row(results, job, name, "onelora", variant)
        if row:
            rates = rates_of(variant)
            rows.append([name, f"{rates[0]:g}–{rates[-1]:g}", *row[1:]])
    return rows if len(rows) > 2 else rows[:1]


def layers_table(results: Results, job: str) -> list[list[str]]:
    """1LoRA and LoRA on the attention alone beside all layers."""
    rows = [["method", "layers", "values", "adapter's", *headings(job)]]
    for method in LAYERS_METHODS:
        both = {"all": final_results(results, job, method)}
        both["attention"] = final_results(results, job, method, extra=ATTENTION)
        if all(both.values()):
            rows += [[method, layers, *counts_of(runs[0]), *figures_of(runs, job)] for layers, runs in both.items()]
    return rows


def good_rates(values: Sequence[float | None], job: str) -> int:
    """How many rates end within 10 % of the best figure (of the best error, for an accuracy)."""
    errors = [None if v is None else (1 - v if JOBS[job].greater_is_better else v) for v in values]
    known = [error for error in errors if error is not None]
    return sum(error <= 1.1 * min(known) for error in known) if known else 0


def ablation_table(results: Results, job: str) -> list[list[str]]:
    """One row per set of parts."""
    rate = best_rate(results, job, "onelora")
    rows = [["parts", "values", *headings(job)]]
    for method in ABLATION:
        result = results.get(Cell(job, method, rate, SEEDS[0], "test")) if rate else None
        if result and "metrics" in result:
            rows.append([method, f"{result['adapter_parameters']:,}", *figures_of([result], job)])
    return rows


def few_shot_results(results: Results, method: str) -> dict[int, list[float]]:
    """Images per class -> top-1 of each seed."""
    found = {}
    for shots in SHOTS:
        extra = () if shots == 20 else (("few_shot", shots),)
        cells = final_cells(results, "classification", method, extra=extra)
        values = [figure(results[cell], "classification") for cell in cells if cell in results]
        if len(values) == len(SEEDS) and None not in values:
            found[shots] = values
    return found


def few_shot_table(results: Results) -> list[list[str]]:
    rows = [["method", *map(str, SHOTS)]]
    for method in FEW_SHOT_METHODS:
        found = few_shot_results(results, method)
        if found:
            rows.append([method, *(spread(found.get(shots, []), 100, 2) for shots in SHOTS)])
    return rows


def markdown(rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; the first row is its head."""
    head, *body = rows
    return markdown_lines(head, body)


# ---------------------------------------------------------------------------------------------------------- pictures


def draw_bubbles(path: Path, results: Results, job: str, times: dict) -> bool:
    """The paper's bubble plot: figure over the time of a step, area by the adapter's values. False without times."""
    name, (heading, factor, _) = JOBS[job].metric, COLUMNS[job][JOBS[job].metric]
    steps = times.get(job, {}).get("step", {})
    points = {method: final_results(results, job, method) for method in methods_of(job) if method in steps}
    points = {method: runs for method, runs in points.items() if runs and method != "head"}  # which adapts nothing
    if not points:
        return False
    with saved_axes(path, "training step / frozen backbone's", heading) as axes:
        for method, runs in points.items():
            place = steps[method]["median"], factor * mean(run["metrics"]["after"][name] for run in runs)
            values = runs[0]["adapter_parameters"] or runs[0]["trainable_parameters"]
            axes.scatter(*place, s=values**0.5 * 2 + 20, color=COLORS[method], alpha=0.6)
            axes.annotate(method, place, fontsize=7, xytext=(4, 4), textcoords="offset points")
        axes.margins(0.12)
        axes.set_title(f"{job}: area grows with the root of the adapter's values", fontsize=9)
    return True


def draw_rates(path: Path, results: Results, job: str, times: dict) -> bool:
    """The validation figure over the learning rate, a curve per method. False if no sweep is complete.

    The axis covers the best two rates of each method that adapts layers: what diverged runs off the picture.
    """
    heading, factor, _ = COLUMNS[job][JOBS[job].metric]
    swept = {method: sweep_cells(job, method) for method in methods_of(job)}
    swept = {method: cells for method, cells in swept.items() if all(cell in results for cell in cells)}
    if not swept:
        return False
    shown: list[float] = []
    with saved_axes(path, "learning rate", f"{heading} (validation)") as axes:
        for method, cells in swept.items():
            values = [figure(results[cell], job) for cell in cells]
            values = [None if value is None else factor * value for value in values]
            known = sorted((v for v in values if v is not None), reverse=JOBS[job].greater_is_better)
            shown += known[:2] if method != "head" else []
            width = 2.5 if method == "onelora" else 1.2
            axes.plot(RATES, values, marker="o", markersize=3, color=COLORS[method], label=method, linewidth=width)
        axes.set_xscale("log")
        margin = 0.05 * (max(shown) - min(shown))
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
        axes.legend(frameon=False, fontsize=7, ncols=2)
    return True


def draw_few_shot(path: Path, results: Results) -> bool:
    """Top-1 over images per class, with the spread over seeds. False if no method has two such numbers."""
    found = {method: few_shot_results(results, method) for method in FEW_SHOT_METHODS}
    if not any(len(by_shots) > 1 for by_shots in found.values()):
        return False
    with saved_axes(path, "images per class", "top-1 %") as axes:
        for method, by_shots in found.items():
            centers, bars = ([100 * of(values) for values in by_shots.values()] for of in (mean, stdev))
            axes.errorbar(list(by_shots), centers, bars, marker="o", capsize=2, color=COLORS[method], label=method)
        axes.set_xscale("log")
        axes.set_xticks(SHOTS, labels=map(str, SHOTS))
        axes.minorticks_off()
        axes.legend(frameon=False)
    return True


@contextlib.contextmanager
def saved_axes(path: Path, xlabel: str, ylabel: str):
    """One panel with a grid, saved when the block ends."""
    with saved_figure(path, (6.4, 4.2)) as drawn:
        axes = drawn.add_subplot(xlabel=xlabel, ylabel=ylabel)
        axes.grid(alpha=0.2)
        yield axes
