"""``onelora predict`` for depth: 16-bit depth maps in millimetres, colour pictures and, optionally, fp32 arrays."""

import argparse
import math
import sys
from pathlib import Path

import numpy as np

from onelora_vision.cli.predictions.inputs import pictures_of, refuse_for_pictures
from onelora_vision.data.images import MAX_ASPECT, read_images
from onelora_vision.errors import InputError
from onelora_vision.inference.loading import load_adapted
from onelora_vision.plots.depth import colorize, save_depth_png
from onelora_vision.plots.pictures import save_marked
from onelora_vision.runtime.progress import progress
from onelora_vision.storage.outputs import check_additions

KIND = "depth maps"
ENDINGS = ("_depth.png", "_color.png", "_depth.npy")


def predict(args: argparse.Namespace) -> list[dict]:
    """Write the depth of pictures to ``args.output``, and return files and statistics for printing."""
    paths = pictures_of(args.inputs)
    refuse_for_pictures(args.max_new_tokens, args.adapter)
    if args.top is not None:
        raise InputError(f"--top is for classifiers; {args.adapter} estimates depth")
    near, far = (0.0 if args.near is None else args.near), (math.inf if args.far is None else args.far)
    if not 0 <= near < far:
        raise InputError(f"--near {near:g} and --far {far:g}: must be depths in metres, the near one smaller")
    args.output = args.output or "depth"
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two pictures are called {twice!r}: their depth maps would overwrite each other")
    maps = [f"{name}{ending}" for name in names for ending in ENDINGS]
    inputs = [*args.inputs, args.adapter, *([args.base] if args.base else [])]
    ledger = check_additions(args.output, KIND, maps, overwrite=args.overwrite, inputs=inputs)
    estimator = load_adapted(args.adapter, args.base, args.device)
    readable = progress(read_images(paths, args.on_bad_image), len(paths), desc="estimating depth", unit="image")
    return [
        _write_depth(args, path, estimator, _depth_of(path, picture, estimator), ledger) for path, picture in readable
    ]


def _depth_of(path: str, picture, estimator):
    """Estimate the depth of a picture, with a note if a very long one is processed at a lower resolution."""
    if max(picture.size) > MAX_ASPECT * min(picture.size):
        size = f"{picture.width}x{picture.height}"
        print(
            f"{path}: {size} pixels, more than {MAX_ASPECT} times as long as wide: its depth is of lower resolution",
            file=sys.stderr,
        )
    return estimator(picture)


def _write_depth(args: argparse.Namespace, path: str, estimator, depth, ledger) -> dict:
    name = Path(path).stem
    millimetres, color, array = (f"{name}{ending}" for ending in ENDINGS)
    metric, clipped = estimator.max_depth is not None, 0
    ledger.delete([millimetres, color, array])
    if metric:
        with ledger.writing_file(millimetres) as temporary:
            clipped = save_depth_png(temporary, depth)
    with ledger.writing_file(color) as temporary:
        save_marked(temporary, colorize(depth, args.near, args.far))
    if args.npy or not metric:  # relative depth is not in millimetres
        with ledger.writing_file(array) as temporary:
            np.save(temporary, depth)
    return {
        "image": path,
        "depth": str(Path(args.output) / (millimetres if metric else array)),
        "color": str(Path(args.output) / color),
        "unit": "m" if metric else "(relative inverse depth)",
        "min": float(depth.min()),
        "median": float(np.median(depth)),
        "max": float(depth.max()),
        "clipped_pixels": clipped,
    }
