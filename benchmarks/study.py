"""All methods on the three embedded jobs: ``python -m benchmarks.study run``, then ``time``, then ``report``.

A cell is one training run: a job, a method, a learning rate, a seed. Its ``results.json`` is in its own folder under
``benchmarks/results/study``; only cells without one are run, so the study resumes where it was stopped. Stages:

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
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from pathlib import Path
from unittest import mock

from benchmarks.cells import (
    FOLDER,
    JOBS,
    Cell,
    load_study,
    load_times,
    methods_of,
)
from benchmarks.compressions import changing, timed
from benchmarks.study_report import write_report
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
from onelora_vision.errors import InputError, nearest
from onelora_vision.runtime.command import exits_cleanly
from onelora_vision.runtime.progress import progress_bar
from onelora_vision.storage.files import write_json
from onelora_vision.tuners.onelora import layer

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


# ----------------------------------------------------------------------------------------------------------- running


def run_cell(cell: Cell, folder: Path, overrides: dict) -> None:
    """Train one cell and keep its ``results.json``, in its own process.

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
        if "learning_rate" not in message:  # not numbers gone wrong, but something to fix
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
        write_report(arguments.folder, arguments.docs, jobs)


if __name__ == "__main__":
    main()
