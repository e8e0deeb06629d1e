"""A strip of strengths: one adapter at several weights, from its opposite to more than it was trained for."""

from .mix import Mix

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5)


def strip_title(adapter: str) -> str:
    """The label of a strip."""
    return f"{adapter} at six strengths"


def at_strengths(mix: Mix) -> list[tuple[str, Mix]]:
    """A mix's adapters at each of `STRENGTHS`, with titles."""
    return [(f"strength {weight:g}".replace("-", "−"), mix.at_weight(weight)) for weight in STRENGTHS]
