"""``onelora convert``: an original DiT checkpoint as a pipeline folder to fine-tune, and back."""

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
    parser.add_argument("--num_heads", "--num-heads", type=int, help="attention heads, if not DiT-XL, L, B or S")


def run(args: argparse.Namespace) -> dict:
    require_path(args.source)
    from onelora_vision.backbones.dit import PIPELINE, DiTBase, save_pipeline
    from onelora_vision.backbones.dit_original import check_original_name, original_base, save_original, to_original
    from onelora_vision.storage.outputs import check_file, check_folder

    place = {"overwrite": args.overwrite, "inputs": [args.source]}
    if Path(args.source).is_dir():
        check_original_name(args.output)
        check_file(args.output, **place)
        base = DiTBase.load(args.source)
        save_original(to_original(base.model), args.output, overwrite=args.overwrite)
    elif args.vae is None:
        raise InputError("--vae is needed: an original checkpoint holds no autoencoder, and a pipeline has one")
    else:
        check_folder(args.output, PIPELINE, **place)
        names = _read_names(args.class_names) if args.class_names else None
        base = original_base(args.source, args.vae, names, args.num_heads)
        save_pipeline(base, args.output, overwrite=args.overwrite)
    values = sum(parameter.numel() for parameter in base.model.parameters())
    return {"source": args.source, "output": args.output, "values": values, "classes": base.model.num_classes}


def show(result: dict, args: argparse.Namespace) -> None:
    print(f"{result['output']}: {result['values']:,} values, {result['classes']} classes")


def _read_names(path: str) -> list[str]:
    from onelora_vision.storage.textfiles import read_lines

    return [name for name in read_lines(path, "--class_names") if name]
