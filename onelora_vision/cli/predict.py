"""``onelora predict``: classes, or depth, of pictures with an adapter."""

import argparse
import os

from onelora_vision.backbones.table import TASKS, named
from onelora_vision.cli.inputs import add_device, add_on_bad_image, require_adapter, require_path
from onelora_vision.cli.output import a_path, add_overwrite
from onelora_vision.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", required=True, help="adapter folder, .safetensors file or hub id")
    parser.add_argument("images", nargs="+", help="pictures, or folders of pictures")
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument("--top", type=int, help="classes to print for each picture (default: 5)")
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
    if args.top is not None and args.top < 1:
        raise InputError(f"--top is {args.top}, but must be at least 1")
    args.adapter = require_adapter(args.adapter)
    for path in args.images:
        require_path(path)
    from onelora_vision.adapters.file import read_adapter

    paths = _pictures(args.images)
    task = read_adapter(args.adapter).info.task
    predicted = {name: row.predict for name, row in TASKS.items() if row.predict}
    if task not in predicted:
        raise InputError(
            f"{args.adapter}: an adapter for {task or 'no task that is named'}; predict takes {' or '.join(predicted)}"
        )
    return named(predicted[task])(args, paths)


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
