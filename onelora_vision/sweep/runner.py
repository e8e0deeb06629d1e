"""Executes the runs of a sweep, several at a time, each in a separate process.

Processes are forked after importing the script and its libraries, so runs start at no cost. If one is killed, alone or
with the sweep, the next start of the sweep continues its run from the last checkpoint.
"""

import contextlib
import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path

from onelora_vision.errors import InputError, TrainingError
from onelora_vision.runtime.progress import progress_bar
from onelora_vision.storage.files import write_json
from onelora_vision.sweep.plan import FAILED, Run, Sweep

LOGS = "logs"
SCRIPTS = "onelora_vision.train_scripts"


def run_all(sweep: Sweep, workers: int, devices: Sequence[str] = ()) -> None:
    """Do the missing runs of a sweep.

    Args:
        workers: runs at a time. devices: CUDA devices, one for each worker; empty: the CPU, whose cores they share.

    Raises:
        InputError: the script refused a run, and would refuse the others. TrainingError: a run's process was killed.
    """
    importlib.import_module(f"{SCRIPTS}.train_{sweep.task}")  # once: runs are forks of this process
    context, running = multiprocessing.get_context("fork"), {}
    free = list(devices) or [""] * workers
    with progress_bar(0, desc="sweep", unit="run", smoothing=0.05) as bar:
        try:
            while True:
                runs = list(sweep.runs())
                missing = [run for run in runs if sweep.result(run) is None]
                bar.total, bar.n = len(runs), len(runs) - len(missing)
                bar.refresh()
                waiting = [run for run in missing if run not in [entry[1] for entry in running.values()]]
                while waiting and free:
                    run, device = waiting.pop(0), free.pop()
                    process = context.Process(target=train_run, args=(sweep, run, device, workers))
                    process.start()
                    running[process.sentinel] = process, run, device
                    bar.set_postfix_str(run.name, refresh=False)
                if not running:
                    return
                for sentinel in wait(list(running)):
                    process, run, device = running.pop(sentinel)
                    process.join()
                    free.append(device)
                    _check_outcome(sweep, run, process.exitcode)
        finally:
            for process, _, _ in running.values():
                process.terminate()  # it writes a checkpoint and exits
            for process, _, _ in running.values():
                process.join()


def train_run(sweep: Sweep, run: Run, device: str = "", workers: int = 1) -> None:
    """Train one run and exit with the script's exit code; its output goes to a log."""
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    script = importlib.import_module(f"{SCRIPTS}.train_{sweep.task}")
    with _logged_to(log_of(sweep, run)):
        script.main(sweep.arguments(run))  # calls sys.exit


def log_of(sweep: Sweep, run: Run) -> Path:
    """The log file of a run's output."""
    return sweep.folder / LOGS / f"{run.name.replace('/', ',')}.txt"


@contextlib.contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        try:
            yield
        finally:
            stream.flush()


def _check_outcome(sweep: Sweep, run: Run, code: int | None) -> None:
    """Record a run whose numbers became invalid, which is a result; any other failure ends the sweep."""
    log = log_of(sweep, run)
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    reason = next(
        (line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), "no message"
    )
    if code == 0:
        if sweep.result(run) is None:
            raise TrainingError(f"{run.name}: ended without results; see {log}")
    elif code == 1 and "learning rate" in reason:
        write_json(sweep.place(run) / FAILED, {"failed": reason})
    elif code == 2:
        raise InputError(f"{run.name}: {reason}")
    else:
        raise TrainingError(
            f"{run.name}: ended with exit code {code} ({reason}); see {log}, then start the sweep again"
        )


def run_with_submitit(sweep: Sweep, options: dict, cluster: str | None, watch: Callable[[str], None]) -> None:
    """Do the missing runs as jobs of submitit, on SLURM or in local processes, in waves.

    Args:
        options: of submitit's executor, such as ``slurm_partition`` and ``timeout_min``.
        cluster: "local", "slurm", or None for submitit's choice. watch: called with the number of submitted jobs.

    Raises:
        InputError: submitit is not installed, or refuses an option. InputError, TrainingError: as in `run_all`.
    """
    try:
        import submitit
    except ImportError:
        raise InputError("--engine submitit needs the package submitit: pip install 'onelora_vision[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder=sweep.folder / LOGS / "submitit", cluster=cluster)
        executor.update_parameters(**options)
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise InputError(f"--engine_options: {error}") from error
    while missing := sweep.missing():
        jobs = [(run, executor.submit(_train_in_job, sweep, run)) for run in missing]
        watch(f"{len(jobs)} jobs submitted with submitit ({executor.cluster})")
        for run, job in jobs:
            try:
                code = job.result()
            except Exception as error:  # whatever the engine raises for a lost job
                raise TrainingError(f"{run.name}: its job ended ({error}); start the sweep again") from error
            _check_outcome(sweep, run, code)


def _train_in_job(sweep: Sweep, run: Run) -> int:
    """`train_run` in a job; returns its exit code."""
    process = multiprocessing.get_context("fork").Process(target=train_run, args=(sweep, run))
    process.start()
    process.join()
    return process.exitcode
