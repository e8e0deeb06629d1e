"""Seconds to replace a loaded adapter by another one, at the size of DiT-XL/2.

    python -m benchmarks.swap

Ways: `swap` from a file and from memory; PEFT's load_adapter, set_adapter and delete_adapter, with 1LoRA and with
LoRA of rank 1; PEFT's hotswap, which only supports LoRA and no label table. The base's weights are never used, so they
are left uninitialised.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
from peft.utils.hotswap import hotswap_adapter

from benchmarks.subjects import default_device, device_name, interleaved, shown, spread
from onelora_vision.adapters.file import read_adapter, save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.adapters.swap import swap
from onelora_vision.backbones.base import Adaptation
from onelora_vision.backbones.catalogue import describe
from onelora_vision.methods.apply import apply_method
from onelora_vision.storage.files import write_json

NUM_CLASSES = 101  # Food-101


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="dit-xl-2")
    parser.add_argument("--seconds", type=float, default=45, help="seconds of rounds, at least three rounds")
    parser.add_argument("--output", help="JSON file")
    parser.add_argument("--quick", action="store_true", help="a small model, to test the script")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict:
    args = parse(argv)
    backbone, seconds = ("dit-s-8", 0.1) if args.quick else (args.backbone, args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        make = partial(_with_two_adapters, backbone=backbone, folder=Path(folder))
        onelora, lora, hot = make("onelora", "ours"), make("lora", "lora"), make("lora", "hot", with_table=False)
        loading = make("onelora", "loading")
        actions = {
            "swap, from a file": _Turns(lambda path: swap(onelora, read_adapter(path)), folder, "ours"),
            "swap, from memory": _Turns(lambda adapter: swap(onelora, adapter), folder, "ours", read_adapter),
            "PEFT load + set + delete, 1LoRA": _Turns(lambda path: _load_and_set(loading, path), folder, "loading"),
            "PEFT load + set + delete, LoRA": _Turns(lambda path: _load_and_set(lora, path), folder, "lora"),
            "PEFT hotswap, LoRA without label table": _Turns(
                lambda path: hotswap_adapter(hot, path, "default"), folder, "hot"
            ),
        }
        times = interleaved(actions, seconds)
    rows = {name: spread([1000 * value for value in row]) for name, row in times.items()}
    print(f"{backbone}, {device_name()}, torch {torch.__version__}, {len(times['swap, from a file'])} rounds")
    print("| way | milliseconds |\n|---|---|")
    for name, row in rows.items():
        print(f"| {name} | {shown(row, 1)} |")
    result = {"backbone": backbone, "device": device_name(), "torch": torch.__version__, "milliseconds": rows}
    if args.output:
        write_json(args.output, result)
    return result


class _Turns:
    """Calls ``action`` alternately with one of two adapters."""

    def __init__(self, action, folder: str, prefix: str, read=str):
        self.action, self.turn = action, 0
        self.adapters = [read(f"{folder}/{prefix}-{number}") for number in (0, 1)]

    def __call__(self) -> None:
        self.turn += 1
        self.action(self.adapters[self.turn % 2])


def _with_two_adapters(method: str, prefix: str, backbone: str, folder: Path, with_table: bool = True):
    """The adapted model, with or without training the label table of 101 classes, and two adapters for it on disk."""
    base = describe(backbone, NUM_CLASSES)
    places = base.adaptation() if with_table else Adaptation(base.adaptation().target_modules)
    model = apply_method(base.model.to_empty(device=default_device()), method, places).eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    info = AdapterInfo("generation", method, backbone)
    with torch.no_grad():
        for number in (0, 1):
            for parameter in trained:
                parameter.normal_(0, 0.02)
            save_adapter(model, folder / f"{prefix}-{number}", info)
    return model


def _load_and_set(model, path: str) -> None:
    """PEFT's own way: load a second adapter, switch, delete the first."""
    before = model.active_adapter
    after = "other" if before == "default" else "default"
    model.load_adapter(path, after)
    model.set_adapter(after)
    model.delete_adapter(before)


if __name__ == "__main__":
    main()
