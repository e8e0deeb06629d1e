"""The ``results.json`` files of runs, as read by other commands."""

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

from onelora_vision.errors import InputError, nearest, one_line
from onelora_vision.metrics.direction import arrow, higher_is_better, is_retention, main_metric
from onelora_vision.storage.safetensors_file import parse_json

PHASES = ("started", "baseline", "trained", "evaluated", "drawn", "complete")
RESULTS = "results.json"
_log = logging.getLogger(__name__)
_MOST_BYTES = 16 << 20
_MOST_LETTERS = 200
# Subfolders of a run's folder that cannot contain runs.
_INSIDE = re.compile(r"checkpoint-\d+|adapter|adapter_without_ema|best|validation|evaluations|logs|\..*")


def read_results(path: str | Path) -> dict:
    """The ``results.json`` of a finished run, by its path or its folder.

    Raises:
        InputError: it does not exist, or the run has not been evaluated.
    """
    file = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        results["protocol"], results["metrics"]["after"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not the results.json of a run ({type(error).__name__}: {error})") from None
    phase = results.get("phase", "complete")
    if phase in PHASES[: PHASES.index("evaluated")] or not results["metrics"]["after"]:
        raise InputError(f"{file}: this run was interrupted (phase {phase!r}); resume it first")
    return results


def find_runs(folder: str | Path) -> Iterator[tuple[Path, dict]]:
    """All runs in ``folder`` and its subfolders, finished or not: their folders, and their results from `checked_run`.

    Links to folders are not followed. Files called ``results.json`` that do not belong to a run are skipped with a
    warning. Means over several seeds are skipped silently, because their runs are found as well.
    """
    for root, folders, files in os.walk(folder):
        if RESULTS in files:
            place = Path(root) / RESULTS
            try:
                results = _read_run(place)
            except InputError as error:
                _log.warning("skipped: %s", error)
            else:
                if results is not None:
                    yield Path(root), results
            folders[:] = [name for name in folders if not _INSIDE.fullmatch(name)]
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _read_run(file: Path) -> dict | None:
    """`checked_run` for a file; None for means over several seeds."""
    try:
        if file.is_symlink() or not file.is_file():
            raise ValueError("it is not a plain file")
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        found = parse_json(file.read_text(encoding="utf-8"), constant=lambda name: None)
        if isinstance(found, dict) and "seeds" in found and "runs" in found:
            return None
        return checked_run(found)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file}: not the results of a run ({one_line(reason)})") from None


def checked_run(found: object) -> dict:
    """The fields of a ``results.json`` that tables of runs show, with checked types.

    Raises:
        ValueError: it was not written by this program.
    """
    if not isinstance(found, dict) or not isinstance(found.get("versions"), dict):
        raise ValueError("it was not written by onelora_vision")
    if "onelora_vision" not in found["versions"]:
        raise ValueError("it was not written by onelora_vision")
    metrics, phase = found.get("metrics"), found.get("phase", "complete")
    if phase not in PHASES:
        raise ValueError(f"its phase is {one_line(phase, 40)}")
    if not isinstance(metrics, dict) or not all(isinstance(metrics.get(when), dict) for when in ("before", "after")):
        raise ValueError("it has no metrics before and after")
    return {
        **{name: one_line(_typed(found, name, str), _MOST_LETTERS) for name in ("task", "method")},
        "protocol": _typed(found, "protocol", str)[:2000],
        "seed": _typed(found, "seed", int),
        "phase": phase,
        "trainable_parameters": _typed(found, "trainable_parameters", int),
        "steps": _typed(found, "steps", int) if "steps" in found else None,
        "learning_rate": _number(_inside(found, "config", "learning_rate")),
        "validation_loss": _number(_inside(found, "validation_loss", "last")),
        "seconds": float(_typed(found, "seconds_total", (int, float))),
        "metrics": {when: _numbers(metrics[when]) for when in ("before", "after")},
    }


def _typed(found: dict, name: str, kind):
    value = found.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"its {name} is {one_line(repr(value), 40)}")
    return value


def _inside(found: dict, name: str, inner: str) -> object:
    return found[name].get(inner) if isinstance(found.get(name), dict) else None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _numbers(metrics: dict) -> dict[str, float | None]:
    """Metrics by name; None for values that are not numbers."""
    return {one_line(name, 60): _number(value) for name, value in metrics.items()}


def sorted_runs(runs: list[dict], metric: str | None = None) -> list[dict]:
    """Sort runs, best first, and add ``metric``, ``before`` and ``after``: of ``metric``, or of the task's main metric.

    ``retention`` is (name, before, after) of a metric on the base's old data; None if a run did not measure it. Without
    ``metric``, runs are grouped by task. Runs that lack the metric come last.

    Raises:
        InputError: no run has ``metric``.
    """
    known = {name: None for run in runs for when in ("before", "after") for name in run["metrics"][when]}
    if metric is not None and runs and metric not in known:
        raise InputError(f"--sort: no run has the metric {metric!r}{nearest(metric, known, 'metric')}")
    rows = []
    for run in runs:
        before, after = (run["metrics"][when] for when in ("before", "after"))
        name = metric or main_metric(run["task"], [*after, *before])
        kept = next(filter(is_retention, [*after, *before]), None)
        kept = kept and (kept, before.get(kept), after.get(kept))
        rows.append({**run, "metric": name, "before": before.get(name), "after": after.get(name), "retention": kept})
    return sorted(rows, key=lambda row: ("" if metric else row["task"], *_rank(row), row["path"]))


def _rank(row: dict) -> tuple[bool, float]:
    value = row["after"]
    if value is None:
        return True, 0.0
    return False, -value if higher_is_better(row["metric"]) else value


def verdict(name: str, before: float | None, after: float | None) -> str:
    """``good`` or ``bad`` for a change of the metric ``name``; empty if it did not change or has no direction."""
    if arrow(name) == " " or before is None or after is None or before == after:
        return ""
    return "good" if (after > before) == higher_is_better(name) else "bad"


def shown_metric(value: float | None) -> str:
    """A metric with four significant digits, or ``none``."""
    return "none" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    """A human-readable duration: ``42 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60:,} h {minutes % 60:02} min"
