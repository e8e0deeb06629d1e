"""``onelora blend``: blend adapter files into a weighted sum, which is an adapter file again."""

import argparse
import re
from pathlib import Path

from onelora_vision.cli.inputs import require_adapter
from onelora_vision.cli.output import add_output
from onelora_vision.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "adapters",
        nargs="+",
        metavar="ADAPTER[:WEIGHT]",
        help="adapter (folder, file or hub id) and its weight (default 1)",
    )
    add_output(parser, "folder, or a single file NAME.safetensors")
    parser.add_argument("--average", action="store_true", help="all weights 1 / number of adapters")
    parser.add_argument(
        "--blocks", action="append", default=[], metavar="0-5:0.2", help="factor on all weights in these blocks"
    )
    parser.add_argument("--base", help="the base model, if the sum of modules saved whole needs its values")
    parser.add_argument(
        "--whole_from", "--whole-from", metavar="ADAPTER", help="take head, label table, norms from this adapter"
    )


def run(args: argparse.Namespace) -> dict:
    terms = [parse_term(text) for text in args.adapters]
    if args.average:
        if any(weight is not None for _, weight in terms):
            raise InputError("--average sets the weights itself: give the adapters without weights")
        terms = [(path, 1 / len(terms)) for path, _ in terms]
    names = [path for path, _ in terms]
    paths = [require_adapter(path) for path in names]
    from onelora_vision.adapters.algebra import blend
    from onelora_vision.adapters.bases import load_base, require_same_base
    from onelora_vision.adapters.file import check_adapter_output, read_adapter, write_adapter

    check_adapter_output(args.output, overwrite=args.overwrite, inputs=paths)
    adapters = [(read_adapter(path), 1.0 if weight is None else weight) for path, (_, weight) in zip(paths, terms)]
    whole_from = None
    if args.whole_from:
        if Path(args.whole_from) not in map(Path, names):
            raise InputError(f"--whole_from {args.whole_from} is not one of the blended adapters {names}")
        whole_from = adapters[[*map(Path, names)].index(Path(args.whole_from))][0]
    base = None
    if args.base:
        base = load_base(adapters[0][0].info, args.base)
        require_same_base(adapters[0][0].info, adapters[0][0].path, base)
    result = blend(adapters, blocks=parse_blocks(args.blocks), base=base and base.model, whole_from=whole_from)
    written = write_adapter(result.config, result.tensors, result.info, args.output, overwrite=args.overwrite)
    return {
        "output": str(written),
        "method": result.info.method,
        "values": sum(tensor.numel() for tensor in result.tensors.values()),
        "terms": [{"adapter": name, "weight": weight} for name, (_, weight) in zip(names, adapters)],
    }


def show(result: dict, args: argparse.Namespace) -> None:
    terms = " + ".join(f"{term['weight']:g} {term['adapter']}" for term in result["terms"])
    print(f"{result['output']} = {terms}: {result['values']:,} values")


def parse_term(text: str) -> tuple[str, float | None]:
    """Parse ``PATH:0.7`` into path and weight; the weight is None if it is not given."""
    path, colon, number = text.rpartition(":")
    if not colon:
        return text, None
    try:
        return path, float(number)
    except ValueError:
        if Path(text).exists():
            return text, None
        raise InputError(f"{text}: expected ADAPTER:WEIGHT with a number, such as {path}:0.7") from None


def parse_blocks(texts: list[str]) -> dict[int, float]:
    """Parse ``["0-5:0.2", "7:0"]`` into block number -> factor."""
    factors = {}
    for text in texts:
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?:([-+.\deE]+)", text)
        try:
            first, last = int(match[1]), int(match[2] or match[1])
            numbers, factor = range(first, last + 1), float(match[3])
        except (TypeError, ValueError):
            raise InputError(f"--blocks {text}: expected numbers of blocks and a factor, such as 0-5:0.2") from None
        if not numbers:
            raise InputError(f"--blocks {text}: the range is empty; give it as {last}-{first}:{factor:g}")
        factors.update(dict.fromkeys(numbers, factor))
    return factors
