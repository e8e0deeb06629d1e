"""Peak memory of training for the whole process, method by method, compared with ``onelora plan``.

    python -m benchmarks.memory --output memory.json
    python -m benchmarks.memory --cases dit-xl-2:32,vit-l-16:64 --methods all --precision pure-bf16     # on a GPU

Each row is a separate process that takes three steps. On a CPU the measured peak is the process's highest resident set
minus its resident set after loading and warming up its libraries. Freed memory is returned to the system immediately
(``MALLOC_MMAP_THRESHOLD_``), so memory held by the allocator is not counted. On a GPU it is torch's own peak.
"""

import argparse
import gc
import json
import os
import subprocess
import sys

import torch

from benchmarks.subjects import adapted, all_methods, default_device, device_name, make_subject, random_inputs
from onelora_vision.backbones.base import enable_gradient_checkpointing
from onelora_vision.budget.memory import PRECISIONS, fake_step, training_loss
from onelora_vision.storage.files import write_json

QUICK = {"cases": "dit-s-8:2:1", "methods": "onelora", "checkpointing": "no"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases",
        default="vit-b-16:4,dit-s-2:8,dit-b-4:8,depth-anything-s:1",
        help="comma-separated BACKBONE:BATCH or BACKBONE:BATCH:BLOCKS",
    )
    parser.add_argument("--methods", default="onelora,lora,full", help="comma-separated names, or all")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--checkpointing", choices=("no", "yes", "both"), default="no")
    parser.add_argument("--output", help="JSON file")
    parser.add_argument("--quick", action="store_true", help="one small case, to test the script")
    parser.add_argument("--single", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[dict]:
    args = parse(argv)
    if args.single:
        print(json.dumps(measure(**json.loads(args.single))))
        return []
    for name, value in QUICK.items() if args.quick else ():
        setattr(args, name, value)
    rows = []
    print(f"{device_name()}, torch {torch.__version__}, {args.precision}; MiB")
    print(
        "| backbone | batch | method | checkpointing | planned | measured | planned / measured |\n" + "|---" * 7 + "|"
    )
    for case in args.cases.split(","):
        name, batch, *blocks = case.split(":")
        for checkpointing in {"no": [False], "yes": [True], "both": [False, True]}[args.checkpointing]:
            for method in all_methods(args.methods):
                settings = {"backbone": name, "batch": int(batch), "blocks": int(blocks[0]) if blocks else None}
                settings |= {"method": method, "precision": args.precision, "checkpointing": checkpointing}
                rows.append(in_own_process(settings))
                _show(rows[-1])
    if args.output:
        write_json(args.output, {"device": device_name(), "torch": torch.__version__, "rows": rows})
    return rows


def _show(row: dict) -> None:
    case = f"| {row['backbone']} | {row['batch']} | {row['method']} | {'yes' if row['checkpointing'] else 'no'} |"
    if "error" in row:
        print(f"{case} | {row['error']} | |", flush=True)
        return
    planned, measured = row["planned_bytes"] / 2**20, row["measured_bytes"] / 2**20
    print(f"{case} {planned:.0f} | {measured:.0f} | {planned / measured:.3f} |", flush=True)


def in_own_process(settings: dict) -> dict:
    """The settings with ``planned_bytes`` and ``measured_bytes``, or with the ``error`` that ended the process."""
    command = [sys.executable, "-m", "benchmarks.memory", "--single", json.dumps(settings)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        error = "out of memory" if "OutOfMemory" in done.stderr or done.returncode == -9 else last
        return {**settings, "error": error}
    return {**settings, **json.loads(done.stdout.splitlines()[-1])}


def measure(backbone: str, batch: int, blocks: int | None, method: str, precision: str, checkpointing: bool) -> dict:
    """Planned and measured peak of training in this process, in bytes."""
    _train(make_subject("dit-s-8", precision, blocks=1), "lora", 1, False)  # the libraries' own buffers
    gc.collect()
    before = 0 if torch.cuda.is_available() else _resident("VmRSS")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    subject = make_subject(backbone, precision, blocks=blocks)
    model, inputs = _train(subject, method, batch, checkpointing)
    measured = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM") - before
    planned = fake_step(model, inputs, batch, precision).peak
    return {"planned_bytes": planned, "measured_bytes": measured, "device": str(default_device())}


def _train(subject, method: str, batch: int, checkpointing: bool, steps: int = 3):
    if checkpointing:
        enable_gradient_checkpointing(subject.model)
    model = adapted(subject, method)
    arguments, autocast = random_inputs(subject, batch), PRECISIONS[subject.precision][1]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for _ in range(steps):
        training_loss(model, arguments, autocast).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, subject.inputs


def _resident(field: str) -> int:
    """This process's resident set in bytes, now (VmRSS) or at its highest (VmHWM); Linux."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
