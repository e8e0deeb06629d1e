"""``onelora convert``: convert an original checkpoint of DiT, SiT or REPA to a pipeline folder, and back."""

import argparse
from pathlib import Path

from onelora_vision.cli.inputs import require_path
from onelora_vision.cli.output import a_path, add_overwrite
from onelora_vision.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="original .pt or .safetensors file; or a DiT pipeline folder, to go back")
    parser.add_argument("output", type=a_path, help="the pipeline folder; or the original's .pt or .safetensors file")
    add_overwrite(parser)
    parser.add_argument("--vae", help="folder or hub id of the autoencoder, such as stabilityai/sd-vae-ft-ema")
    parser.add_argument("--class_names", "--class-names", help="text file of class names, one per line")
    parser.add_argument(
        "--model", choices=("dit", "sit", "repa"),
        help="model that the original file belongs to, which decides what it predicts and how it counts time "
        "(default: repa if it holds REPA's projectors, else dit)",
    )  # fmt: skip
    parser.add_argument(
        "--num_heads", "--num-heads", type=int, help="attention heads, if not those of the sizes XL, L, B or S"
    )


def run(args: argparse.Namespace) -> dict:
    require_path(args.source)
    from onelora_vision.backbones.dit import PIPELINE, DiTBase, save_pipeline
    from onelora_vision.backbones.dit_original import (
        ORIGINALS,
        check_original_name,
        original_base,
        save_original,
        state_of,
    )
    from onelora_vision.storage.outputs import check_file, check_folder

    place = {"overwrite": args.overwrite, "inputs": [args.source]}
    if Path(args.source).is_dir():
        if args.model:
            raise InputError(
                f"--model {args.model}: {args.source} is a pipeline, whose scheduler determines the model; leave it out"
            )
        check_original_name(args.output)
        check_file(args.output, **place)
        base = DiTBase.load(args.source)
        name, state = state_of(base)
        save_original(state, args.output, title=ORIGINALS[name].title, overwrite=args.overwrite)
    elif args.vae is None:
        raise InputError("--vae is needed: an original checkpoint has no autoencoder, but a pipeline does")
    else:
        check_folder(args.output, PIPELINE, **place)
        names = _read_names(args.class_names) if args.class_names else None
        base = original_base(args.source, args.vae, names, args.num_heads, args.model)
        save_pipeline(base, args.output, overwrite=args.overwrite)
    values = sum(parameter.numel() for parameter in base.model.parameters())
    counts = {"values": values, "classes": base.model.num_classes}
    return {"source": args.source, "output": args.output, **counts, "objective": str(base.objective)}


def show(result: dict, args: argparse.Namespace) -> None:
    counts = f"{result['values']:,} values, {result['classes']} classes"
    print(f"{result['output']}: {counts}, predicts {result['objective']}")


def _read_names(path: str) -> list[str]:
    from onelora_vision.storage.textfiles import read_lines

    return [name for name in read_lines(path, "--class_names") if name]
