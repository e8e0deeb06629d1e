"""``onelora predict``: classes, or depth, of pictures with an adapter."""

import argparse
import os
from pathlib import Path

from onelora_vision.errors import InputError

BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", required=True, help="adapter folder or .safetensors file")
    parser.add_argument("images", nargs="+", help="pictures, or folders of pictures")
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument("--top", type=int, default=5, help="classes to print for each picture")
    parser.add_argument("-o", "--output", default="depth", help="folder for depth maps")
    parser.add_argument("--npy", action="store_true", help="also write the depth as fp32 .npy")
    parser.add_argument(
        "--near", type=float, help="depth in metres of the colour map's start (default: the picture's)"
    )
    parser.add_argument("--far", type=float, help="depth in metres of its end")


def run(args: argparse.Namespace) -> list[dict]:
    from onelora_vision.adapters.files import read_adapter

    if args.top < 1:
        raise InputError(f"--top is {args.top}, but must be at least 1")
    paths = _pictures(args.images)
    task = read_adapter(args.adapter).info.task
    if task == "classification":
        return _classify(args, paths)
    if task == "depth":
        return _estimate(args, paths)
    raise InputError(
        f"{args.adapter}: an adapter for {task or 'no task that is named'}; predict takes classification or depth"
    )


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
    from onelora_vision.backbones.vit import predict_classes
    from onelora_vision.data.images import read_image
    from onelora_vision.prediction import load_classifier

    classifier, best = load_classifier(args.adapter, args.base), []
    for start in range(0, len(paths), BATCH):
        pictures = [read_image(path) for path in paths[start : start + BATCH]]
        best += predict_classes(classifier, pictures, top=args.top, batch_size=BATCH)
    return [
        {"image": path, "classes": [{"name": name, "probability": share} for name, share in found]}
        for path, found in zip(paths, best)
    ]


def _estimate(args: argparse.Namespace, paths: list[str]) -> list[dict]:
    from onelora_vision.data.images import read_image
    from onelora_vision.depth_maps import load_depth_estimator

    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two pictures are called {twice!r}: their depth maps would overwrite each other")
    estimator = load_depth_estimator(args.adapter, args.base)
    return [_write_depth(args, path, estimator, estimator(read_image(path))) for path in paths]


def _write_depth(args: argparse.Namespace, path: str, estimator, depth) -> dict:
    import numpy as np
    from PIL import Image

    from onelora_vision.depth_maps import colorize, save_depth_png
    from onelora_vision.files import atomic_file

    folder, name = Path(args.output), Path(path).stem
    metric = estimator.max_depth is not None
    millimetres, clipped = folder / f"{name}_depth.png", 0
    if metric:
        clipped = save_depth_png(millimetres, depth)
    with atomic_file(folder / f"{name}_color.png") as temporary:
        Image.fromarray(colorize(depth, args.near, args.far)).save(temporary, format="PNG")
    if args.npy or not metric:  # relative depth has no millimetres
        with atomic_file(folder / f"{name}_depth.npy") as temporary:
            np.save(temporary, depth)
    return {
        "image": path,
        "depth": str(millimetres if metric else folder / f"{name}_depth.npy"),
        "color": str(folder / f"{name}_color.png"),
        "unit": "m" if metric else "(relative inverse depth)",
        "min": float(depth.min()),
        "median": float(np.median(depth)),
        "max": float(depth.max()),
        "clipped_pixels": clipped,
    }
