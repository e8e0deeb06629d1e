"""Which way a metric is better, for tables and reports."""

_LOWER = ("fd_", "fid", "kid", "rmse", "abs_rel", "sq_rel", "log10", "silog", "nll", "ece", "loss", "perplexity")
_HIGHER = ("top", "precision", "recall", "coverage", "density", "delta", "class_accuracy", "accuracy", "exact_match")


def higher_is_better(name: str) -> bool | None:
    """Whether a greater value of the metric ``name`` is the better one; None for a metric that is not known."""
    if name.startswith(_LOWER):
        return False
    return True if name.startswith(_HIGHER) else None


def arrow(name: str) -> str:
    """``↑`` if higher is better, ``↓`` if lower is, a space if it is not known or has no direction (a floor, a spread)."""
    better = None if name.endswith(("_floor", "_std")) else higher_is_better(name)
    return {True: "↑", False: "↓", None: " "}[better]
