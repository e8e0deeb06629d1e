"""Where the time of a training step goes: in the scripts' embedded jobs, and at the size of DiT-XL/2.

    python -m benchmarks.profile

A job runs as in its script, without its evaluation, for some warm-up steps. Then the batches of further steps are drawn
("data"), and steps are taken alternately as they are and with every torch operation timed. "rest": time of a step
outside
operations: Python, autograd, the progress bar. "sums": 1LoRA's Σx and the vectors of its backward pass, and any other
sums. DiT-XL/2's steps use 1LoRA, random weights and precomputed latents.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.subjects import adapted, device_name, make_subject, random_inputs, synchronize, training_step
from onelora_vision.budget.memory import PRECISIONS
from onelora_vision.storage.files import write_json
from onelora_vision.training import job, loop
from onelora_vision.training.step import OptimizerStep
from train_scripts import train_classification, train_depth, train_dit, train_language

JOBS = {"classification": train_classification, "depth": train_depth, "dit": train_dit, "language": train_language}
XL = "dit-xl-2"

# Prefixes of the operations' names.
GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "convolution", "_scaled_dot_product"),
    "sums": ("sum", "mv", "addmv", "addcmul"),
    "norms": ("native_layer_norm", "native_group_norm"),
    "activations": ("gelu", "silu", "relu", "threshold", "_softmax", "_log_softmax"),
}
OPTIMIZER, OTHER, DATA, REST = "optimizer", "other operations", "data", "rest"


class _SeenEnough(Exception):
    """Ends a job once its steps have been profiled."""


class _Stopwatch(TorchDispatchMode):
    """Seconds of the operations within, by group.

    PyTorch's profiler would be simpler, but its records are allocated between the tensors, so each step requests new
    memory from the system and takes twice as long.
    """

    def __init__(self):
        super().__init__()
        self.seconds: Counter[str] = Counter()
        self._in_optimizer = False

    def __enter__(self):
        self._hooks = [
            register_optimizer_step_pre_hook(lambda *_: setattr(self, "_in_optimizer", True)),
            register_optimizer_step_post_hook(lambda *_: setattr(self, "_in_optimizer", False)),
        ]
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        start = time.perf_counter()
        result = operation(*args, **(kwargs or {}))
        synchronize()
        group = OPTIMIZER if self._in_optimizer else group_of(operation.overloadpacket.__name__)
        self.seconds[group] += time.perf_counter() - start
        return result


def group_of(operation: str) -> str:
    return next((name for name, starts in GROUPS.items() if operation.startswith(starts)), OTHER)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", default=",".join([*JOBS, XL]), help="comma-separated names")
    parser.add_argument("--steps", type=int, default=20, help="steps of an embedded job to profile, twice")
    parser.add_argument(
        "--warmup",
        type=int,
        default=30,
        help="warm-up steps: an epoch of the depth job, in which it renders its scenes",
    )
    parser.add_argument("--xl_steps", type=int, default=3, help=f"steps of {XL}, twice")
    parser.add_argument("--batch_size", type=int, default=2, help=f"of {XL}")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help=f"of {XL}")
    parser.add_argument("--blocks", type=int, default=0, help=f"transformer blocks of {XL}; 0: all")
    parser.add_argument("--output", help="JSON file")
    parser.add_argument("--quick", action="store_true", help="one job and one block, to test the script")
    args = parser.parse_args(argv)
    if args.quick:
        args.jobs, args.steps, args.warmup, args.xl_steps, args.blocks = f"classification,{XL}", 2, 1, 1, 1
    return args


def main(argv: list[str] | None = None) -> dict:
    args = parse(argv)
    rows = {name: profile_xl(args) if name == XL else profile_job(name, args) for name in args.jobs.split(",")}
    parts = [DATA, *GROUPS, OTHER, OPTIMIZER, REST]
    print(f"{device_name()}, torch {torch.__version__}; shares of a step")
    print(f"| job | ms per step | {' | '.join(parts)} |\n|---|---|{'---|' * len(parts)}")
    for name, row in rows.items():
        total = sum(row.values())
        print(f"| {name} | {1000 * total:.1f} | {' | '.join(f'{100 * row[part] / total:.1f} %' for part in parts)} |")
    result = {**vars(args), "device": device_name(), "torch": torch.__version__, "seconds": rows}
    if args.output:
        write_json(args.output, result)
    return result


def profile_job(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Seconds per step of an embedded job, by what they are spent on."""
    script, found = JOBS[name], {}

    class Watched(OptimizerStep):
        def __call__(self, batches: Iterator[dict], sampler) -> dict[str, float]:
            if self.state.progress.step < args.warmup:
                return super().__call__(batches, sampler)
            start = time.perf_counter()
            drawn = iter([next(batches) for _ in range(2 * args.steps)])
            found[DATA] = (time.perf_counter() - start) / (2 * args.steps)
            found.update(seconds_by_group(lambda: super(Watched, self).__call__(drawn, sampler), args.steps))
            raise _SeenEnough

    no_evaluation = mock.patch.object(job, "evaluate", lambda *_, **__: {})
    with tempfile.TemporaryDirectory() as folder, no_evaluation, mock.patch.object(loop, "OptimizerStep", Watched):
        try:
            script.main(["--output_dir", str(Path(folder) / name), "--report_to", "none"])
        except _SeenEnough:
            return found
    raise RuntimeError(f"the job {name} ended before its step {args.warmup}")


def profile_xl(args: argparse.Namespace) -> dict[str, float]:
    """The same for a step at the size of DiT-XL/2, with precomputed latents."""
    subject = make_subject(XL, args.precision, blocks=args.blocks or None)
    step = training_step(adapted(subject, "onelora"), random_inputs(subject, args.batch_size), args.precision)
    step()
    return {DATA: 0.0, **seconds_by_group(step, args.xl_steps)}


def seconds_by_group(step: Callable[[], object], count: int) -> dict[str, float]:
    """Seconds per step of each group of operations and of the rest, from ``count`` plain and as many timed steps."""
    whole, watch = 0.0, _Stopwatch()
    for _ in range(count):  # alternately, as a machine's speed varies
        start = time.perf_counter()
        step()
        synchronize()
        whole += time.perf_counter() - start
        with watch:
            step()
    parts = {name: watch.seconds[name] / count for name in [*GROUPS, OTHER, OPTIMIZER]}
    return parts | {REST: max(whole / count - sum(parts.values()), 0.0)}


if __name__ == "__main__":
    main()
