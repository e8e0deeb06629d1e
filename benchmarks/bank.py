"""A forward pass of 64 samples with N different adapters, compared with one adapter for all.

    python -m benchmarks.bank

"one adapter": a PeftModel with one 1LoRA adapter for the whole batch. `AdapterBank` with N adapters: sample i uses
adapter i (64 drawn from N). PEFT's mixed batch (``adapter_names=``) with LoRA of rank 1 runs once per adapter in the
batch, so it is only measured up to one adapter per sample; beyond that, its time stays constant and its memory grows.
"choose" is the time to gather the batch's vectors, which is only needed when the choice changes.
"""

import argparse
import copy

import torch
from peft import get_peft_model
from torch import nn

from benchmarks.subjects import (
    Subject,
    adapted,
    device_name,
    interleaved,
    make_subject,
    random_inputs,
    ratios,
    shown,
    spread,
)
from onelora_vision.adapters.bank import AdapterBank
from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.storage.files import write_json

SINGLE = "one adapter (1LoRA)"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="dit-b-4")
    parser.add_argument("--blocks", type=int, default=2, help="transformer blocks; 0: all")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--adapters", default="1,8,64,1024", help="sizes N of the bank")
    parser.add_argument("--precision", choices=("fp32", "pure-bf16"), default="fp32")
    parser.add_argument("--seconds", type=float, default=120, help="of rounds, at least three")
    parser.add_argument("--output", help="JSON file")
    parser.add_argument("--quick", action="store_true", help="a small model, to test the script")
    args = parser.parse_args(argv)
    if args.quick:
        args.backbone, args.blocks, args.batch, args.adapters, args.seconds = "dit-s-8", 1, 4, "1,6", 0.1
    return args


def main(argv: list[str] | None = None) -> dict:
    args = parse(argv)
    subject = make_subject(args.backbone, args.precision, blocks=args.blocks or None)
    arguments = random_inputs(subject, args.batch)
    arguments["class_labels"] = torch.zeros_like(arguments["class_labels"])
    single = adapted(subject, "onelora").eval()
    actions, choices = {SINGLE: lambda: single(**arguments)}, {}
    for size in map(int, args.adapters.split(",")):
        bank = make_bank(subject, size)
        ids = torch.randint(size, (args.batch,), generator=torch.Generator().manual_seed(size))
        bank.use(ids)
        actions[f"bank of {size}"] = lambda bank=bank: bank(**arguments)
        choices[f"bank of {size}"] = lambda bank=bank, ids=ids: bank.use(ids)
        if size <= args.batch:
            mixed, names = peft_mixture(subject, size), [f"a{number % size}" for number in range(args.batch)]
            actions[f"PEFT's mixed batch of {size} (LoRA)"] = lambda mixed=mixed, names=names: mixed(
                **arguments, adapter_names=names
            )
    with torch.no_grad():
        times = interleaved(actions, args.seconds)
        choosing = interleaved(choices, 0.1)
    rows = ratios(times, SINGLE)
    print(f"{args.backbone}, {args.blocks or 'all'} blocks, batches of {args.batch}, {args.precision}, {device_name()}, "
          f"torch {torch.__version__}, {len(times[SINGLE])} rounds")  # fmt: skip
    print("| forward with | time / one adapter | choose (ms) |\n|---|---|---|")
    for name, row in rows.items():
        choose = shown(spread([1000 * value for value in choosing[name]]), 1) if name in choosing else ""
        print(f"| {name} | {shown(row)} | {choose} |")
    result = {**vars(args), "device": device_name(), "torch": torch.__version__, "ratios": rows}
    if args.output:
        write_json(args.output, result)
    return result


def make_bank(subject: Subject, size: int) -> AdapterBank:
    """A bank of ``size`` random adapters on the subject's base, without their own label tables."""
    model = adapted(subject, "onelora")
    config, generator = copy.deepcopy(model.peft_config["default"]), torch.Generator().manual_seed(0)
    config.modules_to_save = None
    info = AdapterInfo("generation", "onelora", subject.name)
    layers = {name: subject.model.get_submodule(name).out_features for name in subject.adaptation.target_modules}
    adapters = {}
    for number in range(size):
        tensors = {
            f"base_model.model.{name}.onelora_b": 0.01 * torch.randn(width, generator=generator)
            for name, width in layers.items()
        }
        adapters[f"a{number}"] = Adapter(config, tensors, info, f"a{number}")
    base = copy.deepcopy(subject.model, {id(t): t for t in [*subject.model.parameters(), *subject.model.buffers()]})
    return AdapterBank(base, adapters).eval()


def peft_mixture(subject: Subject, size: int) -> nn.Module:
    """A PeftModel with ``size`` LoRA adapters of rank 1 on the same layers."""
    model = adapted(subject, "lora")
    config = copy.deepcopy(model.peft_config["default"])
    config.modules_to_save = None
    base = copy.deepcopy(subject.model, {id(t): t for t in [*subject.model.parameters(), *subject.model.buffers()]})
    mixture = get_peft_model(base, config, adapter_name="a0")
    for number in range(1, size):
        mixture.add_adapter(f"a{number}", config)
    return mixture.eval()


if __name__ == "__main__":
    main()
