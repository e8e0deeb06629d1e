"""The curves of a training, short enough for a page."""

import statistics
from collections.abc import Iterable, Mapping

POINTS = 120  # of the training loss; each is the mean of the steps since the one before
TRAINING, VALIDATION = "training loss", "validation loss"


def loss_points(rows: Iterable[Mapping]) -> list[tuple[int, float, str]]:
    """(step, loss, which of the two) from what a training has logged, in the order of the steps."""
    rows = list(rows)
    steps = [(row["step"], row["train/loss"]) for row in rows if _has(row, "train/loss")]
    size = max(1, -(-len(steps) // POINTS))
    parts = [steps[start : start + size] for start in range(0, len(steps), size)]
    trained = [(part[-1][0], statistics.fmean(loss for _, loss in part), TRAINING) for part in parts]
    held_out = [(row["step"], row["validation/loss"], VALIDATION) for row in rows if _has(row, "validation/loss")]
    return sorted(trained + held_out)


def newest_evaluation(rows: Iterable[Mapping]) -> dict[str, float]:
    """The metrics of the last evaluation during the training."""
    found: dict[str, float] = {}
    for row in rows:
        metrics = {
            name.partition("/")[2]: row[name] for name in row if name.startswith("evaluation/") and _has(row, name)
        }
        found = metrics or found
    return found


def _has(row: Mapping, name: str) -> bool:
    return isinstance(row.get(name), (int, float))
