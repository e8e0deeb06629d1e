"""Depth as pictures: maps with a colour bar, the difference of two, several strengths next to each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from onelora_vision.errors import InputError, nearest
from onelora_vision.plots.depth import COLOR_MAP, colorize, save_depth_png
from onelora_vision.plots.figures import saved_figure
from onelora_vision.storage.files import atomic_file

#: Colour maps of matplotlib that are offered.
COLORS = (COLOR_MAP, "Spectral", "magma", "viridis", "gray")
DIFFERENCE_MAP = "RdBu_r"
_NEAREST = 1e-3  # metres, for 1/depth
_INK = "#7a7f87"  # readable on white and on black


@dataclass(frozen=True)
class Look:
    """How depth is shown: a colour map, and whether as 1/depth, which shows what is near in more colours."""

    colors: str = COLOR_MAP
    inverse: bool = False

    def __post_init__(self):
        if self.colors not in COLORS:
            raise InputError(f"colour map {str(self.colors)[:40]!r}{nearest(str(self.colors), COLORS, 'colour map')}")


@dataclass(frozen=True)
class Estimate:
    """Depth of a picture by the base, and by the adapters if there are any.

    Attributes:
        image: (H, W, 3) uint8. base, adapted: (H, W) fp32, metres where ``in_metres``, else inverse depth without scale.
    """

    image: np.ndarray
    base: np.ndarray
    adapted: np.ndarray | None
    in_metres: bool

    @property
    def best(self) -> np.ndarray:
        """The adapted depth, or the base's without an adapter."""
        return self.base if self.adapted is None else self.adapted

    def save(self, path: Path) -> None:
        adapted = {} if self.adapted is None else {"adapted": self.adapted}
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, image=self.image, base=self.base, in_metres=self.in_metres, **adapted)

    @classmethod
    def load(cls, path: Path) -> "Estimate":
        with np.load(path, allow_pickle=False) as found:
            adapted = found["adapted"] if "adapted" in found.files else None
            return cls(found["image"], found["base"], adapted, bool(found["in_metres"]))


@dataclass(frozen=True)
class DepthMaps:
    """Files of one picture's depth.

    Attributes:
        base, adapted: maps with a colour bar. difference: adapted minus base, with its own. None without an adapter.
        plain_base, plain_adapted: the same colours alone, at the picture's size, to lay one over the other.
        millimetres: 16-bit PNG of the adapted depth (of the base's, without an adapter); None for relative depth.
        text: the ranges in words.
    """

    base: Path
    plain_base: Path
    adapted: Path | None
    plain_adapted: Path | None
    difference: Path | None
    millimetres: Path | None
    text: str


def draw_maps(folder: Path, estimate: Estimate, look: Look) -> DepthMaps:
    """Write all files of an estimate into ``folder``; base and adapted have one scale of colours."""
    known = {"base": estimate.base, "adapted": estimate.adapted}
    depths = {name: depth for name, depth in known.items() if depth is not None}
    shown = {name: _shown(depth, estimate, look) for name, depth in depths.items()}
    unit, (low, high) = _unit(estimate, look), _reach(shown.values())
    files = dict.fromkeys(("adapted", "plain_adapted", "difference"))
    for name, values in shown.items():
        files[name] = _with_bar(folder / f"depth-{name}.png", values, look.colors, low, high, unit)
        files[f"plain_{name}"] = _plain(folder / f"plain-{name}.png", values, look.colors, low, high)
    lines = [f"{name} {_range(depth, estimate.in_metres)}" for name, depth in depths.items()]
    if estimate.adapted is not None:
        change = shown["adapted"] - shown["base"]
        reach = max(float(np.abs(change).max()), 1e-6)
        files["difference"] = _with_bar(folder / "difference.png", change, DIFFERENCE_MAP, -reach, reach, unit)
        lines.append(f"difference {_range(estimate.adapted - estimate.base, estimate.in_metres)}")
    millimetres = None
    if estimate.in_metres:
        millimetres = folder / "depth-16bit.png"
        clipped = save_depth_png(millimetres, estimate.best)
        lines += [f"{clipped} pixels are beyond 65.535 m, the most that the 16-bit file holds"] if clipped else []
    return DepthMaps(**files, millimetres=millimetres, text="; ".join(lines))


def draw_strip(path: Path, estimates: Sequence[tuple[str, Estimate]], look: Look) -> Path:
    """Write one picture of several estimates with their titles, on one scale of colours."""
    shown = [_shown(estimate.best, estimate, look) for _, estimate in estimates]
    low, high = _reach(shown)
    height, width = shown[0].shape
    columns = 3
    rows = -(-len(shown) // columns)
    size = (2.6 * columns, (2.6 * height / width + 0.3) * rows + 0.7)
    with saved_figure(path, size, transparent=True) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for axes, (title, _), values in zip(panels.flat, estimates, shown):
            drawn = axes.imshow(values, cmap=look.colors, vmin=low, vmax=high, interpolation="nearest")
            axes.set_title(title, fontsize=10, color=_INK)
        _add_bar(figure, drawn, panels, _unit(estimates[0][1], look))
    return path


def _shown(depth: np.ndarray, estimate: Estimate, look: Look) -> np.ndarray:
    """The values that get colours; relative depth is inverse already."""
    return 1 / np.maximum(depth, _NEAREST) if look.inverse and estimate.in_metres else depth


def _unit(estimate: Estimate, look: Look) -> str:
    if not estimate.in_metres:
        return "inverse depth, without scale"
    return "1 / metres" if look.inverse else "metres"


def _reach(maps) -> tuple[float, float]:
    maps = list(maps)
    return min(float(values.min()) for values in maps), max(float(values.max()) for values in maps)


def _range(depth: np.ndarray, in_metres: bool) -> str:
    unit = " m" if in_metres else ""
    return f"{depth.min():.2f} to {depth.max():.2f}{unit} (median {np.median(depth):.2f}{unit})"


def _plain(path: Path, values: np.ndarray, colors: str, low: float, high: float) -> Path:
    with atomic_file(path) as temporary:
        Image.fromarray(colorize(values, low, high, colors)).save(temporary, format="png")
    return path


def _with_bar(path: Path, values: np.ndarray, colors: str, low: float, high: float, unit: str) -> Path:
    """A map with its colour bar below, on a transparent ground."""
    with saved_figure(path, (4.2, 4.2 * values.shape[0] / values.shape[1] + 0.7), transparent=True) as figure:
        axes = figure.subplots()
        drawn = axes.imshow(values, cmap=colors, vmin=low, vmax=high, interpolation="nearest")
        axes.set_axis_off()
        _add_bar(figure, drawn, axes, unit)
    return path


def _add_bar(figure, drawn, axes, unit: str) -> None:
    bar = figure.colorbar(drawn, ax=axes, orientation="horizontal", fraction=0.06, pad=0.02)
    bar.set_label(unit, color=_INK)
    bar.ax.tick_params(colors=_INK)
    bar.outline.set_edgecolor(_INK)
