"""The direction in which a metric improves, and how it changed, for tables and reports."""

from collections.abc import Iterable, Mapping

from onelora_vision.backbones.table import TASKS

_LOWER = (
    "fd_",
    "fid",
    "sfid",
    "kid",
    "rmse",
    "abs_rel",
    "sq_rel",
    "log10",
    "silog",
    "nll",
    "ece",
    "loss",
    "perplexity",
)
_HIGHER = ("top", "precision", "recall", "coverage", "density", "delta", "class_accuracy", "accuracy", "exact_match",
           "inception_score")  # fmt: skip
#: Names of metrics, or prefixes of them.
METRICS = (*_LOWER, *_HIGHER)
#: Prefix of metrics on the base's old data; the rest is the metric's usual name.
RETENTION = "retention_"


def is_retention(name: str) -> bool:
    """Whether ``name`` is about what remains of the base's abilities, rather than about the new task."""
    return name.startswith(RETENTION)


def main_metric(task: str, names: Iterable[str]) -> str | None:
    """The most informative of a run's metrics ``names``; the first for unknown tasks, None if there are none."""
    names = [name for name in names if not is_retention(name)]
    known = TASKS[task].metrics if task in TASKS else ()
    return next((name for name in known if name in names), names[0] if names else None)


def changes(metrics: Mapping[str, Mapping[str, float | None]], most: int = 4) -> str:
    """The first metrics that have a direction, as ``top1 ↑ 0.52 → 0.97, …``; empty if nothing was measured."""
    before, after = (metrics.get(when) or {} for when in ("before", "after"))
    names = [name for name in after if arrow(name) != " " and None not in (after[name], before.get(name))]
    return ", ".join(f"{name} {arrow(name)} {before[name]:.3g} → {after[name]:.3g}" for name in names[:most])


def higher_is_better(name: str) -> bool | None:
    """Whether higher values of the metric ``name`` are better; None for unknown metrics."""
    name = name.removeprefix(RETENTION)
    if name.startswith(_LOWER):
        return False
    return True if name.startswith(_HIGHER) else None


def is_beside(name: str) -> bool:
    """Whether ``name`` is not a model's metric but accompanies one: a floor, a spread."""
    return name.endswith(("_floor", "_std"))


def arrow(name: str) -> str:
    """``↑`` if higher is better, ``↓`` if lower is, a space if unknown or without direction (a floor, a spread)."""
    better = None if is_beside(name) else higher_is_better(name)
    return {True: "↑", False: "↓", None: " "}[better]
