"""``onelora predict``: predict classes or depth of pictures, or answer questions, with an adapter."""

import argparse
import textwrap

from onelora_vision.backbones.table import TASKS, named
from onelora_vision.cli.inputs import add_device, add_on_bad_image, require_adapter
from onelora_vision.cli.output import a_path, add_overwrite
from onelora_vision.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--adapter", required=True, help="adapter folder, .safetensors file or hub id")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="pictures, or folders of pictures; for a language model, questions, or .txt files with one per line",
    )
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument("--top", type=int, help="classes to print for each picture (default: 5)")
    parser.add_argument(
        "-o", "--output", type=a_path, help="folder for depth maps (default: depth); other files are never touched"
    )
    add_overwrite(parser)
    add_on_bad_image(parser)
    add_device(parser)
    parser.add_argument("--npy", action="store_true", help="also write the depth as fp32 .npy")
    parser.add_argument(
        "--near", type=float, help="depth in metres of the colour map's start (default: the picture's)"
    )
    parser.add_argument("--far", type=float, help="depth in metres of its end")
    parser.add_argument(
        "--max_new_tokens",
        "--max-new-tokens",
        type=int,
        help="most tokens of an answer (default: as in the adapter's evaluation)",
    )


def run(args: argparse.Namespace) -> list[dict]:
    for name in ("top", "max_new_tokens"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}, but must be at least 1")
    args.adapter = require_adapter(args.adapter)
    from onelora_vision.adapters.file import read_adapter

    task = read_adapter(args.adapter).info.task
    predicted = {name: row.predict for name, row in TASKS.items() if row.predict}
    if task not in predicted:
        raise InputError(
            f"{args.adapter}: an adapter for {task or 'an unnamed task'}; predict takes {' or '.join(predicted)}"
        )
    return named(predicted[task])(args)


def show(rows: list[dict], args: argparse.Namespace) -> None:
    for row in rows:
        print(row["prompt"] if "prompt" in row else row["image"])
        if "completion" in row:
            print(textwrap.indent(row["completion"], "  "))
        for entry in row.get("classes", []):
            print(f"  {100 * entry['probability']:6.2f} %  {entry['name']}")
        if "depth" in row:
            print(f"  {row['min']:.3f} to {row['max']:.3f} {row['unit']}, median {row['median']:.3f}: {row['depth']}")
            if row["clipped_pixels"]:
                print(f"  {row['clipped_pixels']} pixels are beyond 65.535 m and were clipped in the 16-bit file")
