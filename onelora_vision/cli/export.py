"""``onelora export``: export an adapter for tools that do not know this package."""

import argparse

from onelora_vision.adapters.formats import DTYPES, FORMATS, check_format
from onelora_vision.cli.inputs import require_adapter
from onelora_vision.cli.output import add_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="adapter folder, .safetensors file, .zip or hub id")
    parser.add_argument("--to", required=True, help=", ".join(FORMATS))
    add_output(parser, "folder for the result")
    parser.add_argument("--base", help="where the base model is, if not where the adapter says")
    parser.add_argument("--dtype", default="fp32", help=f"{', '.join(DTYPES)} (default: %(default)s)")
    parser.add_argument(
        "--max_shard_size",
        "--max-shard-size",
        default="5GB",
        help="largest size of a merged model's files, such as 500MB (default: %(default)s; timm writes one file)",
    )


def run(args: argparse.Namespace) -> dict:
    check_format(args.to, args.dtype, args.max_shard_size)
    adapter = require_adapter(args.adapter)
    from onelora_vision.adapters.export import export

    return export(
        adapter,
        args.to,
        args.output,
        base=args.base,
        dtype=args.dtype,
        max_shard_size=args.max_shard_size,
        overwrite=args.overwrite,
    )


def show(result: dict, args: argparse.Namespace) -> None:
    print(f"{result['output']}: {result['to']}, {result['dtype']}")
    if result["carried"]:
        print(f"carried along: {', '.join(result['carried'])}")
    print(
        f"reloaded without onelora_vision: outputs differ by {result['error']:.1e} of the largest "
        f"(the adapter changes them by {result['effect']:.1e})"
    )
    if "guidance_distillation" in result:
        print("guidance is distilled into this adapter: sample with a guidance scale of 1")
