"""Training steps of each method, compared with a frozen backbone with gradients flowing through it.

    python -m benchmarks.step --output step            # ViT-B, DiT-B, Depth Anything-S; on CPU with few blocks
    python -m benchmarks.step --backbones dit-xl-2,vit-l-16,depth-anything-l --blocks 0 --batch 32 --precision pure-bf16

For each backbone, all methods share one base and alternate step by step; ratios are computed within a round, and the
table has their median, minimum and maximum. "step": forward, backward, AdamW. "forward": without gradients, adapters
not merged. "saved": bytes saved by autograd, relative to the frozen model. "peak": maximum of live bytes. 1LoRA also
merged.
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from benchmarks.subjects import (
    FROZEN,
    Subject,
    adapted,
    all_methods,
    device_name,
    interleaved,
    make_subject,
    random_inputs,
    ratios,
    saved_bytes,
    shown,
    spread,
    training_step,
)
from onelora_vision.budget.memory import PRECISIONS, LiveBytes, training_loss
from onelora_vision.budget.parameters import ADAM_BYTES_PER_VALUE
from onelora_vision.methods.apply import trainable_parameters
from onelora_vision.plots.figures import saved_figure
from onelora_vision.storage.files import write_json
from onelora_vision.training.compilation import compile_blocks

# batch and side are chosen for about a second on two CPU cores; 0 blocks: all
BACKBONES = {
    "vit-b-16": {"batch": 8, "blocks": 2},
    "dit-b-2": {"batch": 8, "blocks": 2},
    "depth-anything-s": {"batch": 2, "blocks": 0, "side": 266},
}
QUICK = {
    "vit_tiny_patch16_224": {"batch": 2, "blocks": 1},
    "dit-s-8": {"batch": 2, "blocks": 1},
    "depth-anything-s": {"batch": 1, "blocks": 0, "side": 56},
}
MERGED = "onelora, merged"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", help="comma-separated names (default: the three above)")
    parser.add_argument("--methods", default="onelora,bitfit,difffit,lora,dora,vera,mora1,mora6,full")
    parser.add_argument("--batch", type=int, help="samples per step (default: by the backbone)")
    parser.add_argument("--blocks", type=int, help="transformer blocks; 0: all (default: by the backbone)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks")
    parser.add_argument(
        "--seconds", type=float, default=60, help="seconds of rounds per backbone, at least three rounds"
    )
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: this process's CPU time, for a busy machine"
    )
    parser.add_argument("--output", help="folder for step.json and step-BACKBONE.png")
    parser.add_argument("--quick", action="store_true", help="tiny models, to test the script")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[dict]:
    args = parse(argv)
    known = QUICK if args.quick else BACKBONES
    names = args.backbones.split(",") if args.backbones else list(known)
    rows = []
    for name in names:
        settings = known.get(name, {"batch": 8, "blocks": 0})
        batch, blocks = args.batch or settings["batch"], settings["blocks"] if args.blocks is None else args.blocks
        subject = make_subject(name, args.precision, blocks=blocks or None, side=settings.get("side"))
        methods = ["onelora", "lora"] if args.quick else all_methods(args.methods)
        seconds = 0.1 if args.quick else args.seconds
        found = measure(subject, methods, batch, seconds, args.compile, CLOCKS[args.clock])
        for row in found:
            row.update(backbone=name, batch=batch, blocks=blocks or "all", precision=args.precision)
        print(f"\n{name}, {blocks or 'all'} blocks, batches of {batch}, {args.precision}, {device_name()}, {args.clock} time, "
              f"torch {torch.__version__}, {found[0]['rounds']} rounds\n{table(found)}", flush=True)  # fmt: skip
        rows += found
        if args.output:
            bubbles(found, name, Path(args.output) / f"step-{name}.png")
    if args.output:
        report = {"device": device_name(), "torch": torch.__version__, "compiled": args.compile, "rows": rows}
        write_json(Path(args.output) / "step.json", report)
    return rows


def measure(
    subject: Subject,
    methods: list[str],
    batch: int,
    seconds: float,
    compiled: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict]:
    """One row per method: first the frozen reference, last merged 1LoRA, which only has a forward pass."""
    arguments, precision = random_inputs(subject, batch), subject.precision
    models = {method: adapted(subject, method) for method in [FROZEN, *methods]}
    rows = {name: {"method": name, **_memory(model, arguments, precision)} for name, model in models.items()}
    if compiled:
        for model in models.values():
            compile_blocks(model)
    warmup = 3 if compiled or torch.cuda.is_available() else 1
    steps = {name: training_step(model, arguments, precision) for name, model in models.items()}
    times = interleaved(steps, seconds * 0.75, warmup, clock=clock)
    for name, row in ratios(times, FROZEN).items():
        saved = rows[name]["saved_bytes"] / rows[FROZEN]["saved_bytes"]
        rows[name] |= {"step": row, "seconds": spread(times[name]), "rounds": len(times[name]), "saved_ratio": saved}
    if "onelora" in models:
        models[MERGED] = copy.deepcopy(models["onelora"]).merge_and_unload()
        rows[MERGED] = {"method": MERGED}
    forwards = {name: partial(_forward, model, arguments, precision) for name, model in models.items()}
    for name, row in ratios(interleaved(forwards, seconds * 0.25, warmup, clock=clock), FROZEN).items():
        rows[name]["forward"] = row
    return list(rows.values())


@torch.no_grad()
def _forward(model: nn.Module, arguments: dict, precision: str) -> None:
    training_loss(model, arguments, PRECISIONS[precision][1])


def _memory(model: nn.Module, arguments: dict, precision: str) -> dict:
    """Trained parameters, bytes saved for backward, and live bytes at the peak of a step with weights and moments."""
    autocast, owned = PRECISIONS[precision][1], [*model.parameters(), *model.buffers()]
    saved = saved_bytes(lambda: training_loss(model, arguments, autocast), owned)
    with LiveBytes([*owned, *arguments.values()]) as live:
        training_loss(model, arguments, autocast).backward()
    model.zero_grad()
    weights = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in owned}.values())
    trained = trainable_parameters(model)
    peak = weights + ADAM_BYTES_PER_VALUE * trained + live.peak
    return {"trainable_parameters": trained, "saved_bytes": saved, "peak_bytes": peak}


def table(rows: list[dict]) -> str:
    """The rows as Markdown."""
    lines = [
        "| method | trained parameters | step / frozen | forward / frozen | saved / frozen | saved (MiB) | peak (MiB) |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        if "step" not in row:
            lines.append(f"| {row['method']} | | | {shown(row['forward'])} | | | |")
            continue
        saved, peak = row["saved_bytes"] / 2**20, row["peak_bytes"] / 2**20
        lines.append(
            f"| {row['method']} | {row['trainable_parameters']:,} | {shown(row['step'])} | {shown(row['forward'])} "
            f"| {row['saved_ratio']:.3f} | {saved:.1f} | {peak:.0f} |"
        )
    return "\n".join(lines)


def bubbles(rows: list[dict], title: str, path: Path) -> None:
    """The paper's bubble plot without its metric: step time and trained parameters; the area is the saved memory."""
    rows = [row for row in rows if "step" in row and row["trainable_parameters"]]
    with saved_figure(path, (7.2, 4.8)) as figure:
        axes = figure.add_subplot(
            xlabel="step time / frozen backbone", ylabel="trained parameters", yscale="log", title=title
        )
        largest = max(row["saved_bytes"] for row in rows)
        for number, row in enumerate(rows):
            x, y = row["step"]["median"], row["trainable_parameters"]
            axes.scatter(x, y, s=1500 * row["saved_bytes"] / largest, alpha=0.5, color=f"C{number % 10}", linewidths=0)
            # methods with similar costs overlap, so their names are at different heights
            place = {"xytext": (0, (24, 40, -24, 56, -38, 72, -52)[number % 7]), "textcoords": "offset points"}
            axes.annotate(
                row["method"], (x, y), ha="center", fontsize=8, arrowprops={"arrowstyle": "-", "lw": 0.4}, **place
            )
        axes.margins(0.15, 0.3)
        axes.grid(alpha=0.2)


if __name__ == "__main__":
    main()
