"""``onelora predict``: classes, or depth, of pictures with an adapter."""

import argparse
import itertools
import os
import sys
from pathlib import Path

from onelora_vision.cli.inputs import add_device, add_on_bad_image, require_adapter, require_path
from onelora_vision.cli.output import a_path, add_overwrite
from onelora_vision.errors import InputError

BATCH = 32
KIND = "depth maps"
ENDINGS = ("_depth.png", "_color.png", "_depth.npy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", required=True, help="adapter folder or .safetensors file")
    parser.add_argument("images", nargs="+", help="pictures, or folders of pictures")
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument("--top", type=int, default=5, help="classes to print for each picture")
    parser.add_argument(
        "-o", "--output", type=a_path, help="folder for depth maps (default: depth); files of others are never touched"
    )
    add_overwrite(parser)
    add_on_bad_image(parser)
    add_device(parser)
    parser.add_argument("--npy", action="store_true", help="also write the depth as fp32 .npy")
    parser.add_argument(
        "--near", type=float, help="depth in metres of the colour map's start (default: the picture's)"
    )
    parser.add_argument("--far", type=float, help="depth in metres of its end")


def run(args: argparse.Namespace) -> list[dict]:
    if args.top < 1:
        raise InputError(f"--top is {args.top}, but must be at least 1")
    require_adapter(args.adapter)
    for path in args.images:
        require_path(path)
    from onelora_vision.adapters.file import read_adapter

    paths = _pictures(args.images)
    task = read_adapter(args.adapter).info.task
    if task not in PREDICTIONS:
        raise InputError(
            f"{args.adapter}: an adapter for {task or 'no task that is named'}; predict takes {' or '.join(PREDICTIONS)}"
        )
    return PREDICTIONS[task](args, paths)


def _refuse_depths_flags(args: argparse.Namespace) -> None:
    for name in ("output", "overwrite", "npy", "near", "far"):
        if getattr(args, name) not in (None, False):
            raise InputError(f"--{name} is for depth; {args.adapter} is a classifier's, whose classes are printed")


def show(rows: list[dict], args: argparse.Namespace) -> None:
    for row in rows:
        print(row["image"])
        for entry in row.get("classes", []):
            print(f"  {100 * entry['probability']:6.2f} %  {entry['name']}")
        if "depth" in row:
            print(f"  {row['min']:.3f} to {row['max']:.3f} {row['unit']}, median {row['median']:.3f}: {row['depth']}")
            if row["clipped_pixels"]:
                print(f"  {row['clipped_pixels']} pixels are beyond 65.535 m and were clipped in the 16-bit file")


def _pictures(given: list[str]) -> list[str]:
    from onelora_vision.data.images import list_images

    paths = []
    for path in given:
        found = list_images(path) if os.path.isdir(path) else [path]
        if not found:
            raise InputError(f"{path}: no pictures in this folder")
        paths += found
    return paths


def _classify(args: argparse.Namespace, paths: list[str]) -> list[dict]:
    _refuse_depths_flags(args)
    from onelora_vision.data.images import read_images, trimmed
    from onelora_vision.inference.loading import load_adapted
    from onelora_vision.runtime.progress import progress_bar

    classifier, rows = load_adapted(args.adapter, args.base, args.device), []
    readable = read_images(paths, args.on_bad_image)
    with progress_bar(len(paths), desc="classifying", unit="image", leave=False) as bar:
        while batch := list(itertools.islice(readable, BATCH)):
            pictures = [trimmed(picture, path) for path, picture in batch]
            found = classifier.classify(pictures, top=args.top, batch_size=BATCH)
            for (path, _), classes in zip(batch, found):
                named = [{"name": name, "probability": share} for name, share in classes]
                rows.append({"image": path, "classes": named})
            bar.update(len(batch))
    return rows


def _estimate(args: argparse.Namespace, paths: list[str]) -> list[dict]:
    args.output = args.output or "depth"
    from onelora_vision.data.images import read_images
    from onelora_vision.inference.loading import load_adapted
    from onelora_vision.runtime.progress import progress
    from onelora_vision.storage.outputs import check_additions

    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two pictures are called {twice!r}: their depth maps would overwrite each other")
    maps = [f"{name}{ending}" for name in names for ending in ENDINGS]
    inputs = [*args.images, args.adapter, *([args.base] if args.base else [])]
    ledger = check_additions(args.output, KIND, maps, overwrite=args.overwrite, inputs=inputs)
    estimator = load_adapted(args.adapter, args.base, args.device)
    readable = progress(read_images(paths, args.on_bad_image), len(paths), desc="estimating depth", unit="image")
    return [
        _write_depth(args, path, estimator, _depth_of(path, picture, estimator), ledger) for path, picture in readable
    ]


def _depth_of(path: str, picture, estimator):
    """The depth of a picture; says where a very long one is seen at a lower resolution."""
    from onelora_vision.data.images import MAX_ASPECT

    if max(picture.size) > MAX_ASPECT * min(picture.size):
        size = f"{picture.width}x{picture.height}"
        print(
            f"{path}: {size} pixels, more than {MAX_ASPECT} times as long as wide: its depth is of lower resolution",
            file=sys.stderr,
        )
    return estimator(picture)


def _write_depth(args: argparse.Namespace, path: str, estimator, depth, ledger) -> dict:
    import numpy as np

    from onelora_vision.plots.depth import colorize, save_depth_png
    from onelora_vision.plots.pictures import save_marked

    name = Path(path).stem
    millimetres, color, array = (f"{name}{ending}" for ending in ENDINGS)
    metric, clipped = estimator.max_depth is not None, 0
    ledger.delete([millimetres, color, array])
    if metric:
        with ledger.writing_file(millimetres) as temporary:
            clipped = save_depth_png(temporary, depth)
    with ledger.writing_file(color) as temporary:
        save_marked(temporary, colorize(depth, args.near, args.far))
    if args.npy or not metric:  # relative depth has no millimetres
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


#: What is done with pictures, by the task of the adapter.
PREDICTIONS = {"classification": _classify, "depth": _estimate}
