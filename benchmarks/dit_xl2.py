"""Training steps of DiT-XL/2 at its true size (random weights): seconds and peak memory, method by method.

    python -m benchmarks.dit_xl2 --batch_sizes 32,64 --dtype bf16            # on a GPU
    python -m benchmarks.dit_xl2 --batch_sizes 1 --methods onelora --steps 1 # on a CPU

Latents of 32 x 32 x 4 (256 pixels) and 101 classes, as for Food-101. Each method runs in a separate process, so peaks
are independent; for a method that does not fit, the row says so. The time is the median of the steps after warm-up.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

from benchmarks.subjects import device_name, materialize

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="all", help="comma-separated names, or all")
    parser.add_argument("--batch_sizes", default="32,64")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the frozen weights and the computation")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--fuse_qkv", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--model", default="dit-xl-2", help="another size of backbones.catalogue, to try the script")
    parser.add_argument("--output", help="JSON file for the rows")
    parser.add_argument("--quick", action="store_true", help="a small model, to test the script")
    parser.add_argument("--in_process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.quick:
        args.model, args.methods, args.batch_sizes, args.steps, args.warmup = "dit-s-8", "onelora", "1", 1, 0
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.in_process:
        print(json.dumps(measure(args, args.methods, int(args.batch_sizes))))
        return
    from onelora_vision.methods.names import METHODS
    from onelora_vision.storage.files import write_json

    methods = list(METHODS) if args.methods == "all" else args.methods.split(",")
    rows = [in_own_process(args, method, size) for size in args.batch_sizes.split(",") for method in methods]
    print(f"\n{args.model}, {args.dtype}, {device_name()}, torch {torch.__version__}")
    print("| method | batch | trained parameters | s / step | peak memory (GiB) |\n|---|---|---|---|---|")
    for row in rows:
        if "error" in row:
            print(f"| {row['method']} | {row['batch']} | | | {row['error']} |")
        else:
            peak = row["peak_memory_bytes"] / 2**30
            trained, seconds = row["trainable_parameters"], row["seconds_per_step"]
            print(f"| {row['method']} | {row['batch']} | {trained:,} | {seconds:.3f} | {peak:.2f} |")
    if args.output:
        write_json(args.output, {"device": device_name(), "torch": torch.__version__, "rows": rows})


def in_own_process(args: argparse.Namespace, method: str, batch: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.dit_xl2", "--in_process", "--methods", method, "--batch_sizes", batch]
    command += ["--dtype", args.dtype, "--steps", str(args.steps), "--warmup", str(args.warmup), "--model", args.model]
    for flag in ("gradient_checkpointing", "fuse_qkv", "compile"):
        command += [f"--{flag}"] if getattr(args, flag) else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        error = "out of memory" if "OutOfMemory" in done.stderr or done.returncode == -9 else last
        return {"method": method, "batch": int(batch), "error": error}
    row = json.loads(done.stdout.splitlines()[-1])
    print(row, flush=True)
    return row


def measure(args: argparse.Namespace, method: str, batch: int) -> dict:
    """Train ``method`` on random latents for some steps; seconds per step (median) and peak memory of this process."""
    from onelora_vision.backbones.base import enable_gradient_checkpointing
    from onelora_vision.backbones.catalogue import describe
    from onelora_vision.backbones.dit import dit_adaptation
    from onelora_vision.diffusion.schedule import NoiseSchedule, training_losses
    from onelora_vision.methods.apply import apply_method, trainable_parameters
    from onelora_vision.training.report import peak_memory_bytes

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    dit = describe(args.model, num_classes=101, fuse_qkv=args.fuse_qkv).model
    dit = materialize(dit, device, DTYPES[args.dtype])
    if args.gradient_checkpointing:
        enable_gradient_checkpointing(dit)
    model = apply_method(dit, method, dit_adaptation(dit)).to(device).train()
    step_model = torch.compile(model) if args.compile else model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=device.type == "cuda")
    schedule = NoiseSchedule(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    x0, noise = (torch.randn(batch, 4, dit.config.sample_size, dit.config.sample_size, device=device) for _ in "ab")
    labels, t = (torch.randint(high, (batch,), device=device) for high in (102, 1000))
    seconds = []
    for _ in range(args.warmup + args.steps):
        start = time.perf_counter()
        xt = schedule.add_noise(x0, noise, t)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bf16"):
            output = step_model(xt.to(DTYPES[args.dtype]), timestep=t, class_labels=labels).sample
        sum(training_losses(schedule, output, x0, xt, noise, t).values()).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {
        "method": method,
        "batch": batch,
        "trainable_parameters": trainable_parameters(model),
        "seconds_per_step": statistics.median(seconds[args.warmup :]),
        "peak_memory_bytes": peak_memory_bytes(),
    }


if __name__ == "__main__":
    main()
