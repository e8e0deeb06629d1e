"""``onelora import``: import a rank-1 LoRA with constant A, or MiSS at r=1, as a 1LoRA adapter."""

import argparse

from onelora_vision.cli.inputs import require_path
from onelora_vision.cli.output import add_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", help="PEFT folder (LoRA or MiSS), or LoRA file of diffusers or ComfyUI/kohya")
    add_output(parser, "folder, or a single file NAME.safetensors")
    parser.add_argument("--base", help="the base model, if the file does not name it or it is elsewhere")
    parser.add_argument("--task", help="generation, classification, depth or language, if the file does not say")
    parser.add_argument("--class_names", "--class-names", help="names with commas, if the file does not say")


def run(args: argparse.Namespace) -> dict:
    require_path(args.adapter)
    from onelora_vision.adapters.file import check_adapter_output, write_adapter
    from onelora_vision.adapters.importing import import_adapter

    check_adapter_output(args.output, overwrite=args.overwrite, inputs=[args.adapter])
    names = [name.strip() for name in args.class_names.split(",")] if args.class_names else None
    adapter = import_adapter(args.adapter, base=args.base, task=args.task, class_names=names)
    write_adapter(adapter.config, adapter.tensors, adapter.info, args.output, overwrite=args.overwrite)
    values = sum(tensor.numel() for tensor in adapter.tensors.values())
    return {"output": args.output, "method": adapter.info.method, "base": adapter.info.base, "values": values}


def show(result: dict, args: argparse.Namespace) -> None:
    print(f"{result['output']}: {result['values']:,} values, for {result['base']}")
