"""All methods on the three embedded jobs: ``python -m benchmarks.study run``, then ``report``.

``run`` is ``onelora sweep`` with the settings of each YAML file next to this module, below ``--folder``; it resumes, also
from the results that are kept, so that another machine can go on. The runs are shorter than the scripts' own jobs, so that the whole takes about three hours on two cores. ``report`` keeps each
run's ``results.json`` in ``benchmarks/results/study``, and makes the documentation's tables and pictures from these alone.
"""

import argparse
import json
import shlex
import shutil
from pathlib import Path

from onelora_vision.cli import sweep as sweep_command
from onelora_vision.errors import InputError, nearest
from onelora_vision.runtime.command import exits_cleanly
from onelora_vision.storage.files import atomic_file, write_json
from onelora_vision.sweep.plan import RUNS, SETTINGS, Sweep
from onelora_vision.sweep.report import markdown, plot_rates, rows_of
from onelora_vision.training.results import RESULTS

HERE = Path(__file__).parent
JOBS = tuple(path.stem for path in sorted(HERE.glob("*.yaml")))
KEPT = HERE.parent / "results" / "study"
TABLES = "study-tables.md"


def sweep_of(job: str, folder: Path) -> Sweep:
    """The sweep of a job in its folder below ``folder``."""
    arguments = [job, "--sweep_file", str(HERE / f"{job}.yaml"), "--output_dir", str(folder / job)]
    return sweep_command.read_sweep(arguments)


def keep(job: str, folder: Path, kept: Path) -> None:
    """Copy what the job's runs have measured, and nothing else of them, in place of what was there."""
    shutil.rmtree(kept / job, ignore_errors=True)
    (kept / job).mkdir(parents=True)
    shutil.copyfile(folder / job / SETTINGS, kept / job / SETTINGS)
    for path in sorted((folder / job / RUNS).rglob(RESULTS)):
        results = json.loads(path.read_text(encoding="utf-8"))
        results["config"] = {key: value for key, value in results["config"].items() if not str(value).startswith("/")}
        write_json(kept / path.relative_to(folder), results)


def take_up(job: str, folder: Path, kept: Path) -> None:
    """Begin a job's sweep, where there is none yet, with the results that are kept: these runs are not repeated."""
    if (kept / job).is_dir() and not (folder / job).exists():
        shutil.copytree(kept / job, folder / job)


def sweeps_in(kept: Path) -> dict[str, Sweep]:
    """The sweeps of which results are kept, by job."""
    return {job: sweep_of(job, kept) for job in JOBS if (kept / job).is_dir()}


def tables(kept: Path) -> str:
    """The page of all tables."""
    parts = ["<!-- written by `python -m benchmarks.study report`; do not edit -->", "# Study: tables"]
    for job, sweep in sweeps_in(kept).items():
        parts += [markdown(sweep, rows_of(sweep), level=2).strip(), f"![{job}: rates](images/study-{job}-rates.png)"]
    return "\n\n".join(parts) + "\n"


def report(folder: Path, kept: Path, docs: Path) -> None:
    """Keep the results, and write tables and pictures from them."""
    for job in JOBS:
        if (folder / job).is_dir():
            keep(job, folder, kept)
    for job, sweep in sweeps_in(kept).items():
        plot_rates(sweep, docs / "images" / f"study-{job}-rates.png")
    with atomic_file(docs / TABLES) as temporary:
        temporary.write_text(tables(kept), encoding="utf-8")


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "report"))
    parser.add_argument("--jobs", default=",".join(JOBS), help="run: some of the jobs, with commas")
    parser.add_argument("--folder", type=Path, default=Path("output/study"), help="where the sweeps are")
    parser.add_argument("--kept", type=Path, default=KEPT, help="where their results are kept")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="report: where tables and pictures go")
    parser.add_argument("--flags", default="", help="run: further flags of onelora sweep, such as '--workers 4'")
    arguments = parser.parse_args(argv)
    if arguments.command == "report":
        report(arguments.folder, arguments.kept, arguments.docs)
        return
    jobs = arguments.jobs.split(",")
    if unknown := next((job for job in jobs if job not in JOBS), None):
        raise InputError(f"--jobs {unknown}: no such job{nearest(unknown, JOBS, 'job')}")
    for job in jobs:
        take_up(job, arguments.folder, arguments.kept)
        place = ["--sweep_file", str(HERE / f"{job}.yaml"), "--output_dir", str(arguments.folder / job)]
        sweep_command.main([job, *place, *shlex.split(arguments.flags)])


if __name__ == "__main__":
    main()
