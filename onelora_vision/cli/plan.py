"""``onelora plan``: the memory of a training step, and the largest batch that fits, before anything is downloaded."""

import argparse
import re

from onelora_vision.compressions import COMPRESSIONS
from onelora_vision.errors import InputError
from onelora_vision.methods.names import find_method

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
PARTS = ("weights", "activations", "gradients", "optimizer", "peak")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", required=True, help="dit-xl-2, vit-b-16, …, a timm name, a folder or a hub id")
    parser.add_argument("--method", default="onelora", help="a method's name, or several with commas")
    parser.add_argument("--batch", type=int, default=32, help="samples per step")
    parser.add_argument("--precision", default="bf16", help="fp32; bf16, fp16: mixed; pure-bf16: frozen weights too")
    parser.add_argument(
        "--memory", help="device memory, such as 24GB, or several sizes with commas: also find the largest batch"
    )
    parser.add_argument("--num_classes", "--num-classes", type=int, help="classes of the head or label table")
    parser.add_argument(
        "--fuse_qkv", "--fuse-qkv", action="store_true", help="join q, k, v where the host splits them"
    )
    parser.add_argument(
        "--max_length", "--max-length", type=int, help="tokens of a sample, for a language model (default: 512)"
    )
    parser.add_argument(
        "--quantize", default="none", help="int8, nf4: the weights of the adapted layers in 8 or 4 bits"
    )
    parser.add_argument("--rank", type=int, help="rank, for the methods that have one (default: the method's own)")
    parser.add_argument(
        "--compression", default="sum", choices=COMPRESSIONS, help="what b multiplies, for the methods with a sum"
    )
    parser.add_argument(
        "--compression_rank", "--compression-rank", type=int, help="directions of --compression subspace (default: 16)"
    )


_LARGEST_BATCH = 1_000_000


def run(args: argparse.Namespace) -> list[dict]:
    sizes = [bytes_of(size) for size in args.memory.split(",")] if args.memory else []
    memory = sizes[0] if len(sizes) == 1 else sizes or None
    if args.batch > _LARGEST_BATCH:
        raise InputError(f"--batch is {args.batch}, but must be at most {_LARGEST_BATCH:,}")
    methods = [find_method(name.strip()).name for name in args.method.split(",")]

    from onelora_vision.budget.memory import plan
    from onelora_vision.runtime.progress import progress_bar

    options = {"num_classes": args.num_classes, "fuse_qkv": args.fuse_qkv, "rank": args.rank}
    names = ("compression", "compression_rank", "max_length", "quantize")
    options |= {name: getattr(args, name) for name in names}
    with progress_bar(None, desc="measuring", unit="step", leave=False) as bar:

        def watch(step: str) -> None:
            bar.set_description(step)
            bar.update()

        return [
            plan(
                args.backbone, name, batch=args.batch, precision=args.precision, memory=memory, watch=watch, **options
            )
            for name in methods
        ]


def bytes_of(text: str) -> int:
    """Convert a size such as ``24GB`` (powers of ten) or ``24GiB`` (powers of two) to bytes.

    Raises:
        InputError: ``text`` is not a number with one of these units.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?B)", text.strip(), re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise InputError(f"--memory is {text!r}, but must be a number with its unit, such as 24GB or 16GiB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def show(rows: list[dict], args: argparse.Namespace) -> None:
    print(f"{args.backbone}, {args.precision}, batches of {args.batch}; GB (10^9 bytes)")
    fits = "".join(f"{'fits ' + size.strip():>14}" for size in (args.memory or "").split(",") if size)
    print(f"{'method':<14}{'checkpointing':<14}" + "".join(f"{part:>13}" for part in PARTS) + fits)
    for row in rows:
        for kind, label in (("plain", "no"), ("gradient_checkpointing", "yes")):
            found = row[kind]
            line = f"{row['method']:<14}{label:<14}" + "".join(f"{found[part] / 1e9:>13.3f}" for part in PARTS)
            largest = found["largest_batch"]
            sizes = largest if isinstance(largest, list) else [largest] if args.memory else []
            print(line + "".join(f"{size:>14}" for size in sizes))
