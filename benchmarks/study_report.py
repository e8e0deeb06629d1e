"""What the study's cells say: tables in Markdown and pictures, from the result files alone."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

from benchmarks.study import (
    ABLATION,
    FEW_SHOT_METHODS,
    JOBS,
    METHODS,
    RANDOM,
    RATES,
    SEEDS,
    SHOTS,
    Cell,
    best_rate,
    figure,
    load_study,
    sweep_cells,
    variants_of,
)
from onelora_vision.files import atomic_file

Results = dict[Cell, dict]
COLUMNS = {  # figure: (heading, factor, digits)
    "classification": {"top1": ("top-1 %", 100, 2), "nll": ("NLL", 1, 3), "ece": ("ECE %", 100, 2)},
    "depth": {"abs_rel": ("AbsRel", 1, 3), "rmse": ("RMSE m", 1, 2), "delta1": ("δ1 %", 100, 1)},
    "generation": {"fd_embedded": ("fd_embedded", 1, 2), "class_accuracy": ("class accuracy %", 100, 1)},
}
COLORS = dict(zip(METHODS, ("#7f7f7f", "#c0392b", "#e67e22", "#f1c40f", "#b7950b", "#1f4e8c", "#2e86c1", "#76d7c4", "#6c3483", "#af7ac5", "#1c2833")))  # fmt: skip


def write_report(folder: Path, docs: Path, jobs: Sequence[str]) -> None:
    """``docs/study-tables.md``, and pictures in ``docs/images/study-*.png``."""
    results = load_study(folder, jobs)[1]
    text = ["<!-- written by `python -m benchmarks.study report`; do not edit -->", "# Study: tables", ""]
    for job in jobs:
        sections = [
            ("methods, mean ± std over seeds 0, 1, 2 at the best rate", method_table(results, job)),
            (f"validation {JOBS[job].metric} by learning rate, seed 0", rate_table(results, job)),
            ("sets of {sum, bias, scale, norms} at 1LoRA's best rate, seed 0", ablation_table(results, job)),
        ]
        text += [f"## {job.capitalize()}", ""]
        for title, rows in sections:
            if len(rows) > 1:
                text += [f"**{title[0].upper() + title[1:]}**", "", *markdown(rows), ""]
        images = docs / "images"
        for name, draw in (("bubbles", draw_bubbles), ("rates", draw_rates)):
            if draw(images / f"study-{job}-{name}.png", results, job):
                text += [f"![{job}: {name}](images/study-{job}-{name}.png)", ""]
    if "classification" in jobs:
        rows = few_shot_table(results)
        text += ["## Images per class (classification, top-1 %)", "", *markdown(rows), ""]
        if draw_few_shot(docs / "images" / "study-few-shot.png", results):
            text += ["![Top-1 by images per class](images/study-few-shot.png)", ""]
    with atomic_file(docs / "study-tables.md") as temporary:
        temporary.write_text("\n".join(text))
    print(f"{len(results)} cells; tables in {docs / 'study-tables.md'}, pictures in {docs / 'images'}")


def label(method: str, variant: tuple = ()) -> str:
    """How a swept thing is called in tables."""
    return f"{method}, random vector" if variant == RANDOM else method


def final_results(results: Results, job: str, method: str, variant: tuple = ()) -> list[dict]:
    """The finished test runs at the method's best rate, by seed; those that broke off are left out."""
    rate = best_rate(results, job, method, variant)
    cells = [Cell(job, method, rate, seed, "test", variant) for seed in SEEDS] if rate else []
    return [results[cell] for cell in cells if "metrics" in results.get(cell, {})]


def spread(values: Sequence[float | None], factor: float = 1, digits: int = 2) -> str:
    """Mean ± sample standard deviation."""
    if not values or None in values:
        return "–"
    shown = f"{factor * mean(values):.{digits}f}"
    return f"{shown} ± {factor * stdev(values):.{digits}f}" if len(values) > 1 else shown


def method_table(results: Results, job: str) -> list[list[str]]:
    """One row per method: its rate, values, figures, time, memory."""
    columns = COLUMNS[job]
    head = ["method", "rate", "values", "adapter's", *(column[0] for column in columns.values())]
    rows = [[*head, "s per step", "peak MB"]]
    for method, variant in variants_of(job):
        runs = final_results(results, job, method, variant)
        if not runs:
            continue
        if len(rows) == 1:
            before = runs[0]["metrics"]["before"]
            base = [spread([before.get(name)], *how[1:]) for name, how in columns.items()]
            rows.append(["base", "", "", "", *base, "", ""])
        figures = [spread([run["metrics"]["after"].get(n) for run in runs], *how[1:]) for n, how in columns.items()]
        counts = [f"{runs[0][key]:,}" for key in ("trainable_parameters", "adapter_parameters")]
        cost = [f"{mean(run['seconds_per_step'] for run in runs):.3f}"]
        cost.append(f"{mean(run['peak_memory_bytes'] for run in runs) / 1e6:.0f}")
        rows.append([label(method, variant), f"{runs[0]['config']['learning_rate']:g}", *counts, *figures, *cost])
    return rows


def rate_table(results: Results, job: str) -> list[list[str]]:
    """The validation figure of each method at each rate, the best in bold, and how wide the good range is."""
    name, factor, digits = JOBS[job].metric, *COLUMNS[job][JOBS[job].metric][1:]
    rows = [["method", *(f"{rate:g}" for rate in RATES), "good rates"]]
    for method, variant in variants_of(job):
        cells = sweep_cells(job, [(method, variant)])
        if not all(cell in results for cell in cells):
            continue
        values, best = [figure(results[cell], job) for cell in cells], best_rate(results, job, method, variant)
        shown = ["–" if v is None else f"{factor * v:.{digits}f}" for v in values]
        shown = [f"**{text}**" if rate == best else text for rate, text in zip(RATES, shown)]
        rows.append([label(method, variant), *shown, f"{good_rates(values, job)} of {len(RATES)}"])
    rows[0][-1] += f" ({'within 10 % of the best error' if name == 'top1' else 'within 10 % of the best'})"
    return rows


def good_rates(values: Sequence[float | None], job: str) -> int:
    """How many rates end within 10 % of the best figure (of the best error, for an accuracy)."""
    errors = [None if v is None else (1 - v if JOBS[job].greater_is_better else v) for v in values]
    known = [error for error in errors if error is not None]
    return sum(error <= 1.1 * min(known) for error in known) if known else 0


def ablation_table(results: Results, job: str) -> list[list[str]]:
    """One row per set of parts."""
    rate, columns = best_rate(results, job, "onelora"), COLUMNS[job]
    rows = [["parts", "values", *(column[0] for column in columns.values())]]
    for method in ABLATION:
        result = results.get(Cell(job, method, rate, SEEDS[0], "test")) if rate else None
        if result and "metrics" in result:
            after = result["metrics"]["after"]
            figures = [spread([after.get(name)], *how[1:]) for name, how in columns.items()]
            rows.append([method, f"{result['adapter_parameters']:,}", *figures])
    return rows


def few_shot_results(results: Results, method: str) -> dict[int, list[float]]:
    """Images per class -> top-1 of each seed."""
    rate, found = best_rate(results, "classification", method), {}
    for shots in SHOTS if rate else ():
        variant = () if shots == 20 else (("few_shot", shots),)
        cells = [Cell("classification", method, rate, seed, "test", variant) for seed in SEEDS]
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
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


# ---------------------------------------------------------------------------------------------------------- pictures


def draw_bubbles(path: Path, results: Results, job: str) -> bool:
    """The paper's bubble plot: figure over seconds of training, area by trained values. False if nothing is there."""
    name, (heading, factor, _) = JOBS[job].metric, COLUMNS[job][JOBS[job].metric]
    points = {method: final_results(results, job, method) for method in METHODS}
    points = {method: runs for method, runs in points.items() if runs}
    if not points:
        return False
    figure_, axes = new_figure("seconds per step", heading)
    for method, runs in points.items():
        seconds = mean(run["seconds_per_step"] for run in runs)
        value = factor * mean(run["metrics"]["after"][name] for run in runs)
        values = runs[0]["adapter_parameters"] or runs[0]["trainable_parameters"]
        axes.scatter(seconds, value, s=values**0.5 * 2 + 20, color=COLORS[method], alpha=0.6, label=method)
        axes.annotate(method, (seconds, value), fontsize=7, xytext=(4, 4), textcoords="offset points")
    axes.set_title(f"{job}: area grows with the root of the trained values", fontsize=9)
    return save(path, figure_)


def draw_rates(path: Path, results: Results, job: str) -> bool:
    """The validation figure over the learning rate, a curve per method."""
    heading, factor, _ = COLUMNS[job][JOBS[job].metric]
    figure_, axes = new_figure("learning rate", f"{heading} (validation)")
    drawn = False
    for method in METHODS:
        cells = sweep_cells(job, [(method, ())])
        if all(cell in results for cell in cells):
            values = [figure(results[cell], job) for cell in cells]
            axes.plot(
                RATES,
                [None if v is None else factor * v for v in values],
                marker="o",
                markersize=3,
                color=COLORS[method],
                label=method,
                linewidth=2.5 if method == "onelora" else 1.2,
            )
            drawn = True
    axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=7, ncols=2)
    return drawn and save(path, figure_)


def draw_few_shot(path: Path, results: Results) -> bool:
    """Top-1 over images per class, with the spread over seeds."""
    figure_, axes = new_figure("images per class", "top-1 %")
    drawn = False
    for method in FEW_SHOT_METHODS:
        found = few_shot_results(results, method)
        if found:
            shots, values = list(found), list(found.values())
            centers, bars = [100 * mean(v) for v in values], [100 * stdev(v) for v in values]
            axes.errorbar(shots, centers, bars, marker="o", capsize=2, color=COLORS[method], label=method)
            drawn = True
    axes.set_xscale("log")
    axes.set_xticks(SHOTS, labels=map(str, SHOTS))
    axes.minorticks_off()
    axes.legend(frameon=False)
    return drawn and save(path, figure_)


def new_figure(xlabel: str, ylabel: str):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.add_subplot(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.2)
    return drawn, axes


def save(path: Path, drawn) -> bool:
    with atomic_file(path) as temporary:
        drawn.savefig(temporary, format="png", dpi=120)
    return True
