"""All methods on the three embedded jobs: ``python -m benchmarks.study run``, then ``python -m benchmarks.study report``.

A cell is one training run: a job, a method, a learning rate, a seed. Its ``results.json`` lies in a folder of its own under
``benchmarks/results/study``; only cells without one are run, so that the study goes on where it was stopped. Stages:

1. sweep: the same five learning rates for every method, seed 0, judged on the validation split;
2. final: three seeds at each method's best rate, judged on the test split;
3. ablation: every set of {sum, bias, scale, norms} at 1LoRA's best rate;
4. compression: 1LoRA with a random vector in the place of the sum, swept and judged like a method;
5. few-shot: classification with 5, 10 and 50 images per class.

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
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from tqdm import tqdm

from onelora_vision.errors import InputError, exits_cleanly, nearest
from onelora_vision.files import write_json
from onelora_vision.methods import COMBINATIONS, find_method

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
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SEEDS = (0, 1, 2)
SHOTS = (5, 10, 20, 50)
FEW_SHOT_METHODS = ("head", "onelora", "lora", "full")
ABLATION = tuple(find_method(parts).name for parts in COMBINATIONS)  # "sum" is onelora, and so on


@dataclass(frozen=True)
class Job:
    """One embedded job: its script's flags in the study, and how its cells are ranked."""

    script: str
    metric: str
    greater_is_better: bool
    validation: dict
    flags: dict = field(default_factory=dict)
    has_head: bool = True  # whether the method "head" has something to train


JOBS = {
    "classification": Job(
        "train_classification",
        "top1",
        True,
        {"eval_split": "validation"},
        {"max_train_steps": 200, "eval_batch_size": 256},
    ),
    "depth": Job(
        "train_depth",
        "abs_rel",
        False,
        {"eval_split": "validation"},
        {"max_train_steps": 100, "max_train_samples": 500, "max_eval_samples": 100, "num_validation_images": 0},
        has_head=False,
    ),
    "generation": Job(
        "train_dit",
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
    variant: tuple[tuple[str, object], ...] = ()

    @property
    def path(self) -> Path:
        """Folder of the cell, below the study's."""
        extra = "".join(f",{name}={value}" for name, value in self.variant)
        return Path(self.job) / f"{self.method}{extra},lr={self.learning_rate:g},seed={self.seed},{self.split}"

    def flags(self) -> dict:
        """The script's flags."""
        job = JOBS[self.job]
        flags = {**job.flags, **dict(self.variant), "method": self.method, "seed": self.seed}
        flags["learning_rate"] = self.learning_rate
        if self.method == "head":  # what it trains has the other rate in the scripts
            flags["head_learning_rate"] = self.learning_rate
        if self.split == "validation":
            flags.update(job.validation)
        return {**flags, "checkpointing_steps": 0, "report_to": "none"}


# ---------------------------------------------------------------------------------------------------------- the plan


def sweep_cells(job: str, variants: Iterable[tuple[str, tuple]]) -> list[Cell]:
    """Every rate for every (method, variant), judged on the validation split."""
    return [Cell(job, method, rate, 0, "validation", extra) for method, extra in variants for rate in RATES]


def best_rate(results: dict[Cell, dict], job: str, method: str, variant: tuple = ()) -> float | None:
    """The rate with the best validation figure, or None while the sweep is not complete; no figure is the worst."""
    cells = sweep_cells(job, [(method, variant)])
    if not all(cell in results for cell in cells):
        return None
    figures = {cell.learning_rate: figure(results[cell], job) for cell in cells}
    known = {rate: value for rate, value in figures.items() if value is not None}
    if not known:
        return None
    return (max if JOBS[job].greater_is_better else min)(known, key=known.get)


def figure(result: dict, job: str, when: str = "after") -> float | None:
    """The figure that the job is ranked by; None where it was no finite number or training broke off."""
    return result["metrics"][when].get(JOBS[job].metric) if "metrics" in result else None


RANDOM = (("compression", "random"),)


def variants_of(job: str) -> list[tuple[str, tuple]]:
    """What is swept: the methods, and 1LoRA with a random compression vector."""
    methods = [method for method in METHODS if method != "head" or JOBS[job].has_head]
    return [*((method, ()) for method in methods), ("onelora", RANDOM)]


def wanted_cells(results: dict[Cell, dict], jobs: Iterable[str]) -> list[Cell]:
    """The cells of all stages, as far as the sweeps that are done tell their rates; in the order to run them."""
    cells = [cell for job in jobs for cell in sweep_cells(job, variants_of(job))]
    for job in jobs:
        for method, variant in variants_of(job):
            rate = best_rate(results, job, method, variant)
            if rate is not None:
                cells += [Cell(job, method, rate, seed, "test", variant) for seed in SEEDS]
        rate = best_rate(results, job, "onelora")
        if rate is not None:
            cells += [Cell(job, method, rate, seed, "test") for method in ABLATION for seed in SEEDS[:1]]
    if "classification" in jobs:
        for method, shots in itertools.product(FEW_SHOT_METHODS, SHOTS):
            rate = best_rate(results, "classification", method)
            if rate is not None and shots != 20:  # 20 is what the other stages have
                cells += [Cell("classification", method, rate, s, "test", (("few_shot", shots),)) for s in SEEDS]
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
    flags = {**cell.flags(), **overrides, "output_dir": work}
    log = work / "log.txt"
    with open(log, "w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
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
        results["config"] = {**cell.flags(), **overrides}  # what differs from the script's defaults
    write_json(place / "results.json", results)
    shutil.rmtree(work)


def run(folder: Path, jobs: list[str], workers: int, minutes: float | None, overrides: dict) -> int:
    """Run the missing cells, ``workers`` at a time; takes no new one after ``minutes``. Returns how many are left."""
    for job in jobs:  # imported once: a cell is a fork of this process, with its own random state and peak of memory
        importlib.import_module(f"train_scripts.{JOBS[job].script}")
    stop = time.monotonic() + minutes * 60 if minutes else float("inf")
    context, running = multiprocessing.get_context("fork"), {}
    with tqdm(unit="cell", smoothing=0.05) as bar:
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
    parser.add_argument("command", choices=("run", "status", "report"))
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the cells' results are")
    parser.add_argument("--jobs", default=",".join(JOBS), help="some of the jobs, with commas")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="cells at a time, each on one thread")
    parser.add_argument("--minutes", type=float, help="start no new cell after so long")
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
    else:
        from benchmarks.study_report import write_report

        write_report(arguments.folder, arguments.docs, jobs)


if __name__ == "__main__":
    main()
