"""Depth of a picture by the base and by the enabled adapters, and the difference of the two."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from onelora_vision.backbones.depth import DepthBase
from onelora_vision.data.images import read_image
from onelora_vision.data.synthetic.scenes import SceneFrames
from onelora_vision.errors import InputError
from onelora_vision.inference.depth import estimate_depth
from onelora_vision.plots.depth import COLOR_MAP, colorize, save_depth_png
from onelora_vision.plots.figures import saved_figure
from onelora_vision.storage.files import atomic_file

from .bases import Bases
from .sessions import Session

MAX_SIDE = 1536  # pixels of a picture that is taken as it is
DIFFERENCE_MAP = "RdBu_r"
_INK = "#7a7f87"  # readable on white and on black


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


class DepthMapper:
    """Estimates depth for sessions on the shared bases."""

    def __init__(self, bases: Bases):
        self.bases = bases

    def estimate(self, session: Session, picture: Path | None, base: str = "") -> DepthMaps:
        """The depth of a picture by the base and by the enabled depth adapters.

        Raises:
            InputError: no picture, or adapters that have no sum.
        """
        if picture is None:
            raise InputError("choose a picture first, or take the example")
        image = read_image(picture)
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        mix, folder = session.mix(DepthBase.task), session.output()
        variants = [mix.without_adapters(), mix] if mix.terms else [mix]
        views = [self.bases.view(variant, base) for variant in variants]  # all before the first is used
        with session.pace.timed(mix):
            maps = [estimate_depth(view, image, mix.info.extra.get("resolution")) for view in views]
            return _draw(folder, maps[0], maps[1] if mix.terms else None, views[0].is_metric)


def write_example(path: Path) -> Path:
    """A rendered street, 192 x 192, that no training has seen."""
    frame = SceneFrames("streets", "test", 12, 192, 192)[11]
    with atomic_file(path) as temporary:
        Image.fromarray(frame.image).save(temporary, format="png")
    return path


def _draw(folder: Path, base: np.ndarray, adapted: np.ndarray | None, in_metres: bool) -> DepthMaps:
    unit = "metres" if in_metres else "inverse depth, without scale"
    shown = [base] if adapted is None else [base, adapted]
    near, far = min(float(d.min()) for d in shown), max(float(d.max()) for d in shown)
    files = {"base": None, "adapted": None, "plain_base": None, "plain_adapted": None, "difference": None}
    for name, depth in zip(("base", "adapted"), shown):
        files[name] = _with_bar(folder / f"depth-{name}.png", depth, COLOR_MAP, near, far, unit)
        files[f"plain_{name}"] = _plain(folder / f"plain-{name}.png", depth, near, far)
    lines = [f"{name} {_range(depth, in_metres)}" for name, depth in zip(("base", "adapted"), shown)]
    if adapted is not None:
        change = adapted - base
        reach = max(float(np.abs(change).max()), 1e-6)
        files["difference"] = _with_bar(folder / "difference.png", change, DIFFERENCE_MAP, -reach, reach, unit)
        lines.append(f"difference {_range(change, in_metres)}")
    millimetres = None
    if in_metres:
        millimetres = folder / "depth-16bit.png"
        clipped = save_depth_png(millimetres, shown[-1])
        lines += [f"{clipped} pixels are beyond 65.535 m, the most that the 16-bit file holds"] if clipped else []
    return DepthMaps(**files, millimetres=millimetres, text="; ".join(lines))


def _range(depth: np.ndarray, in_metres: bool) -> str:
    unit = " m" if in_metres else ""
    return f"{depth.min():.2f} to {depth.max():.2f}{unit} (median {np.median(depth):.2f}{unit})"


def _plain(path: Path, depth: np.ndarray, near: float, far: float) -> Path:
    with atomic_file(path) as temporary:
        Image.fromarray(colorize(depth, near, far)).save(temporary, format="png")
    return path


def _with_bar(path: Path, values: np.ndarray, colors: str, low: float, high: float, unit: str) -> Path:
    """A map with its colour bar below, on a transparent ground."""
    with saved_figure(path, (4.2, 4.2 * values.shape[0] / values.shape[1] + 0.7), transparent=True) as figure:
        axes = figure.subplots()
        drawn = axes.imshow(values, cmap=colors, vmin=low, vmax=high, interpolation="nearest")
        axes.set_axis_off()
        bar = figure.colorbar(drawn, ax=axes, orientation="horizontal", fraction=0.06, pad=0.02)
        bar.set_label(unit, color=_INK)
        bar.ax.tick_params(colors=_INK)
        bar.outline.set_edgecolor(_INK)
    return path
