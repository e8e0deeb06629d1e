"""``onelora card``: rewrite an adapter folder's README.md, with licence, data and pictures."""

import argparse
from pathlib import Path

from onelora_vision.cli.inputs import require_adapter
from onelora_vision.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="adapter folder")
    parser.add_argument(
        "--license", help="licence of the adapter, as the hub spells it: apache-2.0, mit, cc-by-4.0, …"
    )
    parser.add_argument("--data", help="what it was trained on")
    parser.add_argument("--picture", action="append", default=[], help="picture to show: samples, loss curve")


def run(args: argparse.Namespace) -> dict:
    if not Path(args.adapter).is_dir():
        raise InputError(f"{args.adapter}: no such folder; a card belongs to an adapter folder")
    require_adapter(args.adapter)
    from onelora_vision.adapters.file import read_adapter, rewrite_card

    adapter = read_adapter(args.adapter)
    adapter.info.license = args.license or adapter.info.license
    adapter.info.data = args.data or adapter.info.data
    pictures = args.picture or sorted(Path(args.adapter).glob("*.png"))
    card = rewrite_card(adapter, pictures)
    return {"card": str(card), "pictures": [Path(picture).name for picture in pictures]}


def show(result: dict, args: argparse.Namespace) -> None:
    print(f"{result['card']}{': ' * bool(result['pictures'])}{', '.join(result['pictures'])}")
