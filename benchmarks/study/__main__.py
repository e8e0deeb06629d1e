"""All methods on the three embedded jobs: ``python -m benchmarks.study run``, then ``report``.

``run`` is ``onelora sweep`` with the settings of each YAML file next to this module, in ``--folder``. It resumes, also
from the kept results, so another machine can continue. The runs are shorter than the scripts' own jobs, to take about
three hours in total on two cores. ``report`` keeps each run's ``results.json`` in ``benchmarks/results/study``, and
makes the documentation's tables and pictures from these only.
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
    """The sweep of a job, in its folder inside ``folder``."""
    arguments = [job, "--sweep_file", str(HERE / f"{job}.yaml"), "--output_dir", str(folder / job)]
    return sweep_command.read_sweep(arguments)


def keep(job: str, folder: Path, kept: Path) -> None:
    """Copy only the results of the job's runs, replacing earlier ones."""
    shutil.rmtree(kept / job, ignore_errors=True)
    (kept / job).mkdir(parents=True)
    shutil.copyfile(folder / job / SETTINGS, kept / job / SETTINGS)
    for path in sorted((folder / job / RUNS).rglob(RESULTS)):
        results = json.loads(path.read_text(encoding="utf-8"))
        results["config"] = {key: value for key, value in results["config"].items() if not str(value).startswith("/")}
        write_json(kept / path.relative_to(folder), results)


def take_up(job: str, folder: Path, kept: Path) -> None:
    """Start a job's sweep, unless it exists, from the kept results, so that these runs are not repeated."""
    if (kept / job).is_dir() and not (folder / job).exists():
        shutil.copytree(kept / job, folder / job)


def sweeps_in(kept: Path) -> dict[str, Sweep]:
    """The sweeps with kept results, by job."""
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
    parser.add_argument("--jobs", default=",".join(JOBS), help="run: comma-separated jobs")
    parser.add_argument("--folder", type=Path, default=Path("output/study"), help="folder of the sweeps")
    parser.add_argument("--kept", type=Path, default=KEPT, help="folder of the kept results")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="report: folder for tables and pictures")
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
