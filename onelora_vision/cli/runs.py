"""``onelora runs``: list all runs below a folder, best first, as a table, JSON or a page."""

import argparse
import datetime
import os
import re
from pathlib import Path
from urllib.parse import quote

from onelora_vision.backbones.table import TASKS
from onelora_vision.cli.inputs import require_path
from onelora_vision.cli.output import a_path, add_overwrite
from onelora_vision.errors import InputError
from onelora_vision.metrics.direction import RETENTION, arrow
from onelora_vision.storage.outputs import check_file, file_output
from onelora_vision.training.results import duration, find_runs, shown_metric, sorted_runs, verdict

REPORT = "report.html"
EXAMPLES = """examples:
  onelora runs output
  onelora runs output --task generation --sort class_accuracy
  onelora runs output --html runs.html
"""
_HEADS = (
    "run",
    "task",
    "method",
    "rate",
    "parameters",
    "metric",
    "before",
    "after",
    "retention",
    "val. loss",
    "time",
    "seed",
    "phase",
)
_RIGHT = {"rate", "parameters", "before", "after", "retention", "val. loss", "time", "seed"}
_PICTURES = ("samples", "pictures", "predictions", "loss")  # in order of preference as thumbnail of a run
_MOST_THUMBNAILS = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("folder", metavar="DIR", help="folder that the runs are in, at any depth")
    parser.add_argument(
        "--sort", metavar="METRIC", help="show and sort by this metric (default: each task's main one)"
    )
    parser.add_argument("--task", choices=tuple(TASKS), help="only runs of this task")
    parser.add_argument("--html", type=a_path, metavar="FILE", help="also write a page with thumbnails and links")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> dict:
    require_path(args.folder)
    if args.html:
        if not args.html.endswith(".html"):
            raise InputError(f"--html {args.html}: the name of a page must end in .html")
        check_file(args.html, overwrite=args.overwrite)
    found = []
    for place, results in find_runs(args.folder):
        if args.task in (None, results["task"]):
            report = place / REPORT
            name = os.path.relpath(place, args.folder)
            found.append({"path": name, **results, "report": str(report) if report.is_file() else None})
    rows = sorted_runs(found, args.sort)
    if args.html:
        _write_page(rows, args)
    return {"folder": args.folder, "runs": rows, "html": args.html}


def show(result: dict, args: argparse.Namespace) -> None:
    if not result["runs"]:
        print(f"{result['folder']}: no runs")
        return
    heads = _heads(result["runs"])
    rows = [heads, *([_cells(row)[head] for head in heads] for row in result["runs"])]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = (
            cell.rjust(width) if head in _RIGHT else cell.ljust(width) for head, cell, width in zip(heads, row, widths)
        )
        print("  ".join(cells).rstrip())
    if note := _note(result["runs"]):
        print(f"\n{note}")
    if result["html"]:
        print(f"\n{result['html']}")


def _heads(rows: list[dict]) -> list[str]:
    """The columns of a table. Retention is included if any run has measured it."""
    return [head for head in _HEADS if head != "retention" or any(row["retention"] for row in rows)]


def _cells(row: dict) -> dict[str, str]:
    """The texts of a run's cells, by column."""
    metric, (kept, *change) = row["metric"], row["retention"] or ("", None, None)
    cells = (
        row["path"],
        row["task"],
        row["method"],
        "" if row["learning_rate"] is None else f"{row['learning_rate']:g}",
        f"{row['trainable_parameters']:,}",
        f"{metric} {arrow(metric)}".strip() if metric else "",
        shown_metric(row["before"]) if row["before"] is not None else "",
        shown_metric(row["after"]) if row["after"] is not None else "",
        f"{kept.removeprefix(RETENTION)} {arrow(kept)} {' → '.join(map(shown_metric, change))}" if kept else "",
        "" if row["validation_loss"] is None else shown_metric(row["validation_loss"]),
        duration(row["seconds"]),
        str(row["seed"]),
        row["phase"],
    )
    return dict(zip(_HEADS, cells))


def _note(rows: list[dict]) -> str:
    """A warning if metrics of one task were measured with different protocols, ignoring their seeds."""
    protocols: dict[str, set[str]] = {}
    for row in rows:
        protocols.setdefault(row["task"], set()).add(re.sub(r"\bseed=\d+", "", row["protocol"]))
    mixed = [f"{len(found)} protocols of {task}" for task, found in protocols.items() if len(found) > 1]
    return f"Not all metrics are comparable: {', '.join(mixed)} (--json shows them)." if mixed else ""


def _write_page(rows: list[dict], args: argparse.Namespace) -> None:
    from onelora_vision.plots.html import render

    target = Path(os.path.realpath(args.html)).parent
    kinds = [(head, "number" if head in _RIGHT else "text") for head in _heads(rows)]
    page = render(
        "runs.html",
        folder=str(args.folder),
        columns=kinds,
        rows=[_page_row(row, kinds, args.folder, target, number) for number, row in enumerate(rows)],
        note=_note(rows),
        date=datetime.date.today().isoformat(),
    )
    with file_output(args.html, overwrite=args.overwrite) as path:
        path.write_text(page, encoding="utf-8")


def _page_row(row: dict, kinds: list[tuple[str, str]], folder: str, target: Path, number: int) -> dict:
    values = {
        "rate": row["learning_rate"],
        "parameters": row["trainable_parameters"],
        "val. loss": row["validation_loss"],
        "before": row["before"],
        "after": row["after"],
        "retention": row["retention"] and row["retention"][-1],
        "time": row["seconds"],
        "seed": row["seed"],
    }
    changes = {"after": (row["metric"], row["before"], row["after"]), "retention": row["retention"]}
    cells, texts = [], _cells(row)
    for head, kind in kinds:
        value, change = values.get(head, texts[head]), changes.get(head)
        good = verdict(*change) if change and change[0] else ""
        cells.append({"text": texts[head], "kind": kind, "value": "" if value is None else value, "verdict": good})
    report = row["report"] and quote(os.path.relpath(os.path.realpath(row["report"]), target))
    thumbnail = _thumbnail(Path(folder) / row["path"]) if number < _MOST_THUMBNAILS else None
    return {"cells": cells, "link": report, "thumbnail": thumbnail, "unfinished": row["phase"] != "complete"}


def _thumbnail(place: Path) -> str | None:
    from onelora_vision.plots.html import embedded_picture

    pictures = (place / f"{name}.png" for name in _PICTURES)
    return next((embedded_picture(file, 320) for file in pictures if file.is_file() and not file.is_symlink()), None)
