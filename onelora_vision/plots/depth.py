"""Depth as images: colours, 16-bit PNG in millimetres, and comparisons."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from onelora_vision.plots.figures import saved_figure
from onelora_vision.plots.pictures import save_marked

COLOR_MAP = "turbo"
PNG_LIMIT = 65.535  # metres: the maximum of 16-bit millimetres


def colorize(
    depth: np.ndarray, near: float | None = None, far: float | None = None, colors: str = COLOR_MAP
) -> np.ndarray:
    """Depth (H, W) as colours (H, W, 3) uint8 between ``near`` and ``far`` (default: its own range); NaN is white.

    ``colors`` is the name of a matplotlib colour map.
    """
    from matplotlib import colormaps

    known = depth[np.isfinite(depth)]
    near = near if near is not None else float(known.min(initial=np.inf) if known.size else 0)
    far = far if far is not None else float(known.max(initial=-np.inf) if known.size else 1)
    share = np.clip((depth - near) / max(far - near, 1e-9), 0, 1)
    pixels = colormaps[colors](np.nan_to_num(share))[..., :3]
    pixels[~np.isfinite(depth)] = 1
    return (pixels * 255 + 0.5).astype(np.uint8)


def save_depth_png(path: str | os.PathLike, depth: np.ndarray) -> int:
    """Write metres (H, W) as a 16-bit PNG in millimetres, 0 if not finite; returns how many pixels exceed the limit.

    Depths beyond 65.535 m do not fit and are written as 65535.
    """
    finite = np.isfinite(depth)
    millimetres = np.clip(np.where(finite, depth, 0) * 1000 + 0.5, 0, 65535).astype(np.uint16)
    save_marked(path, millimetres)
    return int((finite & (depth > PNG_LIMIT)).sum())


class ComparedDepth(NamedTuple):
    """One row of a comparison: ``image`` (3, h, w) in [0, 1], the rest (H, W), metres and bool."""

    image: torch.Tensor
    depth: torch.Tensor
    valid: torch.Tensor
    base: torch.Tensor
    adapted: torch.Tensor


def save_depth_comparison(
    path: str | os.PathLike, rows: Sequence[ComparedDepth], far: float, caption: str = ""
) -> None:
    """Write a PNG of image | truth | base | adapted | error of both, one row per image, with one colour bar in metres.

    Where the truth is unknown, truth and errors are blank and the maps pale. Colours follow the square root of the
    metres, so small depths and errors remain visible next to large ones. ``caption`` is a line at the bottom.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm

    titles = ("image", "truth", "base", "adapted", "error of base", "error of adapted")
    ratio = rows[0].depth.shape[1] / rows[0].depth.shape[0]
    with saved_figure(path, (1.8 * ratio * len(titles) + 0.9, 1.8 * len(rows) + 0.6), dpi=110) as figure:
        axes = figure.subplots(len(rows), len(titles), squeeze=False)
        colors = colormaps[COLOR_MAP].with_extremes(bad="white")
        for cells, row in zip(axes, rows):
            errors = [
                torch.where(row.valid, (values - row.depth).abs(), torch.nan) for values in (row.base, row.adapted)
            ]
            truth = torch.where(row.valid, row.depth, torch.nan)
            cells[0].imshow(row.image.permute(1, 2, 0).clamp(0, 1).cpu().numpy())
            opacity = torch.where(row.valid, 1.0, 0.3).cpu().numpy()
            for cell, values in zip(cells[1:], (truth, row.base, row.adapted, *errors)):
                norm = PowerNorm(0.5, vmin=0, vmax=far)
                cell.imshow(values.cpu().numpy(), cmap=colors, norm=norm, alpha=opacity, interpolation="nearest")
        for cell, title in zip(axes[0], titles):
            cell.set_title(title, fontsize=11)
        for cell in axes.flat:
            cell.set_axis_off()
        scale = ScalarMappable(PowerNorm(0.5, vmin=0, vmax=far), colors)  # without transparency
        figure.colorbar(scale, ax=axes, label="metres", fraction=0.03, pad=0.01)
        if caption:
            figure.supxlabel(caption, fontsize=10, color="#555555", parse_math=False)
