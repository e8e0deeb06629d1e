"""All methods on the three embedded jobs: ``python -m benchmarks.study run``, then ``time``, then ``report``.

A cell is one training run: a job, a method, a learning rate, a seed. Its ``results.json`` lies in a folder of its own under
``benchmarks/results/study``; only cells without one are run, so that the study goes on where it was stopped. Stages:

1. sweep: the same five learning rates for every method, seed 0, judged on the validation split;
2. final: three seeds at each method's best rate, judged on the test split;
3. ablation: every set of {sum, bias, scale, norms} at 1LoRA's best rate;
4. few-shot: classification with 5, 10 and 50 images per class;
5. layers: 1LoRA and LoRA on the attention alone, at their best rates;
6. compression: 1LoRA with other vectors in the place of ones and with other scales, swept and judged like methods.

Cells are shorter than the scripts' own jobs, so that the whole takes about three hours on two cores.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from unittest import mock

from benchmarks.compressions import changing, timed
from benchmarks.subjects import (
    FROZEN,
    adapted,
    device_name,
    interleaved,
    make_subject,
    random_inputs,
    ratios,
    shown,
    spread,
    training_step,
)
from onelora_vision import embedded
from onelora_vision.errors import InputError, nearest
from onelora_vision.methods.names import COMBINATIONS, find_method
from onelora_vision.runtime.command import exits_cleanly
from onelora_vision.runtime.progress import progress_bar
from onelora_vision.storage.files import write_json
from onelora_vision.tuners.onelora import layer

FOLDER = Path(__file__).parent / "results" / "study"
METHODS = (
    "head",
    "onelora",
    "onelora_norms",
    "bitfit",
    "difffit",
    "lora",
    "dora",
    "vera",
    "mora1",
    "mora6",
    "full",
)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = (0, 1, 2)
SHOTS = (5, 10, 20, 50)
FEW_SHOT_METHODS = ("head", "onelora", "lora", "full")
ABLATION = tuple(find_method(parts).name for parts in COMBINATIONS)  # "sum" is onelora, and so on


ATTENTION = (("target_modules", "att"),)
LAYERS_METHODS = ("onelora", "lora")

Variant = tuple[tuple[str, object], ...]
COMPRESSIONS: dict[str, Variant] = {
    "random": (("compression", "random"),),
    "random signs": (("vector", "signs"),),
    "singular vector of W0": (("compression", "singular"),),
    "principal component of x": (("vector", "principal"),),
    "sum / √k": (("scale", "unit"),),
    "sum, --sum_scale rms": (("sum_scale", "rms"),),
}
"""1LoRA's variants by their names in tables; `vector` and `scale` are those of `benchmarks.compressions`."""
RATE_FACTORS = {"singular": 0.1, "principal": 0.1, "unit": 10, "rms": 10}
"""Their compressed inputs are so much larger or smaller that the same rates would test nothing."""


@dataclass(frozen=True)
class Job:
    """One embedded job: its script's flags in the study, how its cells are ranked, and what its steps are made of."""

    script: str
    base: Path
    batch: int
    metric: str
    greater_is_better: bool
    validation: dict
    flags: dict = field(default_factory=dict)
    has_head: bool = True  # whether the method "head" has something to train


JOBS = {
    "classification": Job(
        "train_classification",
        embedded.VIT,
        32,
        "top1",
        True,
        {"eval_split": "validation"},
        {"max_train_steps": 200, "eval_batch_size": 256},
    ),
    "depth": Job(
        "train_depth",
        embedded.DEPTH,
        16,
        "abs_rel",
        False,
        {"eval_split": "validation"},
        {"max_train_steps": 100, "max_train_samples": 500, "max_eval_samples": 100, "num_validation_images": 0},
        has_head=False,
    ),
    "generation": Job(
        "train_dit",
        embedded.DIT,
        64,
        "fd_embedded",
        False,
        {"fid_split": "validation"},
        {"max_train_steps": 200, "fid_num_samples": 300, "num_inference_steps": 10, "num_validation_images": 1},
    ),
}


@dataclass(frozen=True)
class Cell:
    """One training run. ``variant`` holds further flags, as sorted pairs; ``stage`` is why it is run."""

    job: str
    method: str
    learning_rate: float
    seed: int
    split: str
    variant: Variant = ()

    @property
    def path(self) -> Path:
        """Folder of the cell, below the study's."""
        extra = "".join(f",{name}={value}" for name, value in self.variant)
        return Path(self.job) / f"{self.method}{extra},lr={self.learning_rate:g},seed={self.seed},{self.split}"

    @property
    def compression(self) -> dict[str, str]:
        """``vector`` and ``scale``, where they are not the package's own."""
        return {name: value for name, value in self.variant if name in ("vector", "scale")}

    def flags(self) -> dict:
        """The script's flags."""
        job = JOBS[self.job]
        flags = {**job.flags, **dict(self.variant), "method": self.method, "seed": self.seed}
        if self.compression:
            flags = {name: value for name, value in flags.items() if name not in self.compression}
            flags["compression"] = "random"  # whose vectors are then replaced
        flags["learning_rate"] = self.learning_rate
        if self.method == "head":  # what it trains has the other rate in the scripts
            flags["head_learning_rate"] = self.learning_rate
        if self.split == "validation":
            flags.update(job.validation)
        return {**flags, "checkpointing_steps": 0, "report_to": "none"}


# ---------------------------------------------------------------------------------------------------------- the plan


def rates_of(variant: Variant) -> tuple[float, ...]:
    """The rates that are tried: as many for each, around another middle where v is much longer or shorter."""
    factor = next((RATE_FACTORS[value] for _, value in variant if value in RATE_FACTORS), 1)
    return tuple(float(f"{rate * factor:g}") for rate in RATES)


def sweep_cells(job: str, method: str, variant: Variant = ()) -> list[Cell]:
    """Every rate for a method or variant, judged on the validation split."""
    return [Cell(job, method, rate, SEEDS[0], "validation", variant) for rate in rates_of(variant)]


def best_rate(results: dict[Cell, dict], job: str, method: str, variant: Variant = ()) -> float | None:
    """The rate with the best validation figure, or None while the sweep is not complete; no figure is the worst."""
    cells = sweep_cells(job, method, variant)
    if not all(cell in results for cell in cells):
        return None
    figures = {cell.learning_rate: figure(results[cell], job) for cell in cells}
    known = {rate: value for rate, value in figures.items() if value is not None}
    if not known:
        return None
    return (max if JOBS[job].greater_is_better else min)(known, key=known.get)


def final_cells(
    results: dict[Cell, dict], job: str, method: str, variant: Variant = (), extra: Variant = ()
) -> list[Cell]:
    """The test runs of all seeds at the best rate of (method, variant), with ``extra`` flags; none before it is known."""
    rate = best_rate(results, job, method, variant)
    return [] if rate is None else [Cell(job, method, rate, seed, "test", variant + extra) for seed in SEEDS]


def figure(result: dict, job: str, when: str = "after") -> float | None:
    """The figure that the job is ranked by; None where it was no finite number or training broke off."""
    return result["metrics"][when].get(JOBS[job].metric) if "metrics" in result else None


def methods_of(job: str) -> list[str]:
    """The methods that have something to train in a job."""
    return [method for method in METHODS if method != "head" or JOBS[job].has_head]


def wanted_cells(results: dict[Cell, dict], jobs: Iterable[str]) -> list[Cell]:
    """The cells of all stages, as far as the sweeps that are done tell their rates; in the order to run them."""
    cells = [cell for job in jobs for method in methods_of(job) for cell in sweep_cells(job, method)]
    for job in jobs:
        for method in methods_of(job):
            cells += final_cells(results, job, method)
        rate = best_rate(results, job, "onelora")
        if rate is not None:
            cells += [Cell(job, method, rate, SEEDS[0], "test") for method in ABLATION]
    for method, shots in itertools.product(FEW_SHOT_METHODS if "classification" in jobs else (), SHOTS):
        if shots != 20:  # 20 is what the other stages have
            cells += final_cells(results, "classification", method, extra=(("few_shot", shots),))
    for job, method in itertools.product(jobs, LAYERS_METHODS):
        cells += final_cells(results, job, method, extra=ATTENTION)
    for job, variant in itertools.product(jobs, COMPRESSIONS.values()):
        cells += sweep_cells(job, "onelora", variant)
        cells += final_cells(results, job, "onelora", variant)
    return list(dict.fromkeys(cells))


def read_results(folder: Path, cells: Iterable[Cell]) -> dict[Cell, dict]:
    """The cells that have been run."""
    return {cell: json.loads(p.read_text()) for cell in cells if (p := folder / cell.path / "results.json").exists()}


def load_study(folder: Path, jobs: Iterable[str] = tuple(JOBS)) -> tuple[list[Cell], dict[Cell, dict]]:
    """All cells known so far, and the results of those that have been run."""
    cells, results = [], {}
    while True:  # a finished sweep tells further cells
        wanted = wanted_cells(results, jobs)
        if wanted == cells:
            return cells, results
        cells, results = wanted, read_results(folder, wanted)


# ------------------------------------------------------------------------------------------------------------ times


def measure_times(folder: Path, jobs: Iterable[str], seconds: float) -> None:
    """Time the methods' training steps side by side, in rounds, and keep ``times.json``; on a machine left alone."""
    times = load_times(folder)
    for job in jobs:
        subject = make_subject(str(JOBS[job].base))
        inputs = random_inputs(subject, JOBS[job].batch)
        methods = (FROZEN, *methods_of(job))
        steps = {method: training_step(adapted(subject, method), inputs, "fp32") for method in methods}
        taken = interleaved(steps, seconds)
        times[job] = {
            "device": device_name(),
            "batch": JOBS[job].batch,
            "rounds": len(taken[FROZEN]),
            "seconds": {method: spread(values) for method, values in taken.items()},
            "step": ratios(taken, FROZEN),
        }
        print(f"{job}: {', '.join(f'{m} {shown(row)}' for m, row in times[job]['step'].items())}", flush=True)
        write_json(folder / "times.json", times)


def load_times(folder: Path) -> dict:
    """What `measure_times` kept, by job."""
    path = folder / "times.json"
    return json.loads(path.read_text()) if path.exists() else {}


# ----------------------------------------------------------------------------------------------------------- running


def run_cell(cell: Cell, folder: Path, overrides: dict) -> None:
    """Train one cell and keep its ``results.json``, in a process of its own.

    A run whose numbers went wrong is a result too: ``{"failed": message}``.
    """
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    place = folder / cell.path
    work = place.with_name(f".running-{place.name}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    script = importlib.import_module(f"train_scripts.{JOBS[cell.job].script}")
    cost: list[float] = []
    apply_method = script.apply_method
    if cell.compression:
        apply_method = changing(apply_method, **{"vector": "ones", "scale": "ones", **cell.compression}, cost=cost)
    flags = {**cell.flags(), **overrides, "output_dir": work}
    log = work / "log.txt"
    replaced = mock.patch.object(script, "apply_method", apply_method)
    measured = mock.patch.object(layer, "compression_vector", timed(layer.compression_vector, cost))
    with replaced, measured, _logged_to(log):
        try:
            script.main([f"--{name}={value}" for name, value in flags.items()])
        except SystemExit as ended:
            code = ended.code
    if code:
        message = log.read_text().strip().splitlines()[-1]
        if "learning_rate" not in message:  # not numbers gone wrong, but something to mend
            sys.exit(f"{cell.path}: {message}")
        results = {"failed": message}
    else:
        results = json.loads((work / "results.json").read_text())
        # What differs from the script's defaults, and from its compression.
        results["config"] = {**cell.flags(), **overrides, **cell.compression}
        results["seconds_of_calibration"] = sum(cost)
    write_json(place / "results.json", results)
    shutil.rmtree(work)


@contextlib.contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    with open(path, "w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield


def run(folder: Path, jobs: list[str], workers: int, minutes: float | None, overrides: dict) -> int:
    """Run the missing cells, ``workers`` at a time; takes no new one after ``minutes``. Returns how many are left."""
    for job in jobs:  # imported once: a cell is a fork of this process, with its own random state and peak of memory
        importlib.import_module(f"train_scripts.{JOBS[job].script}")
    stop = time.monotonic() + minutes * 60 if minutes else float("inf")
    context, running = multiprocessing.get_context("fork"), {}
    with progress_bar(0, unit="cell", smoothing=0.05) as bar:
        while True:
            cells, results = load_study(folder, jobs)
            bar.total, bar.n = len(cells), len(results)
            bar.refresh()
            missing = [cell for cell in cells if cell not in results]
            waiting = [cell for cell in missing if cell not in running.values()]
            while waiting and len(running) < workers and time.monotonic() < stop:
                cell = waiting.pop(0)
                process = context.Process(target=run_cell, args=(cell, folder, overrides))
                process.start()
                running[process.sentinel] = cell
                bar.set_postfix_str(str(cell.path))
            if not running:
                return len(missing)
            for sentinel in wait(list(running)):
                cell = running.pop(sentinel)
                if not (folder / cell.path / "results.json").exists():
                    raise InputError(f"the cell {cell.path} broke off; see {folder / cell.job}/.running-*/log.txt")


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "status", "time", "report"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the cells' results are")
    parser.add_argument("--jobs", default=",".join(JOBS), help="some of the jobs, with commas")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="cells at a time, each on one thread")
    parser.add_argument("--minutes", type=float, help="start no new cell after so long")
    parser.add_argument("--seconds", type=float, default=60, help="time: of rounds, per job")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="report: where tables and pictures go")
    parser.add_argument("--quick", action="store_true", help="two steps per cell: to see that everything runs")
    arguments = parser.parse_args(argv)
    jobs = arguments.jobs.split(",")
    for job in jobs:
        if job not in JOBS:
            raise InputError(f"--jobs {job}: no such job{nearest(job, JOBS, 'job')}")
    if arguments.command == "run":
        quick = {"max_train_steps": 2} if arguments.quick else {}
        left = run(arguments.folder, jobs, arguments.workers, arguments.minutes, quick)
        print(f"{left} cells are left" if left else "all cells are done")
    elif arguments.command == "status":
        cells, results = load_study(arguments.folder, jobs)
        print(f"{len(results)} of {len(cells)} cells known so far are done")
    elif arguments.command == "time":
        measure_times(arguments.folder, jobs, arguments.seconds)
    else:
        from benchmarks.study_report import write_report

        write_report(arguments.folder, arguments.docs, jobs)


if __name__ == "__main__":
    main()
