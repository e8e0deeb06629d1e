"""``onelora push``: upload an adapter folder to the Hugging Face hub."""

import argparse
from pathlib import Path

from onelora_vision.cli.inputs import require_adapter
from onelora_vision.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="adapter folder")
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository on the hub, created if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")


def run(args: argparse.Namespace) -> dict:
    if not Path(args.adapter).is_dir():
        raise InputError(f"{args.adapter}: no such folder; a hub repository holds an adapter folder with its card")
    require_adapter(args.adapter)
    from onelora_vision.adapters.hub import push_adapter

    pictures = sorted(path.name for path in Path(args.adapter).glob("*.png"))
    address = push_adapter(args.adapter, args.repo_id, private=args.private)
    return {"adapter": args.adapter, "address": address, "pictures": pictures}


def show(result: dict, args: argparse.Namespace) -> None:
    shown = f", with {', '.join(result['pictures'])}" if result["pictures"] else ""
    print(f"{result['adapter']} -> {result['address']}{shown}")
