"""``onelora sweep TASK``: compare methods at their own best learning rates, with several seeds, on any data."""

import argparse
import json
import os
import sys
from pathlib import Path

from onelora_vision.cli.output import a_path
from onelora_vision.data.classes.formats import BENCHMARKS
from onelora_vision.errors import InputError, nearest
from onelora_vision.runtime.command import Parser
from onelora_vision.sweep.arms import arm_names
from onelora_vision.sweep.sweep_file import read_sweep_file

DESCRIPTION = """Compare methods at their own best learning rates, with several seeds, on any data.

Each method is trained at several rates with the first seed and evaluated on the validation split. At its best rate, it
is trained with all seeds and evaluated on the test split. All other flags are those of `onelora train TASK`, for all
runs. Repeat the command to do what is missing after an interruption, or with further methods, rates or seeds.

example:
  onelora sweep classification --methods onelora,lora,lokr,full --dataset_name imagefolder --data_dir pets \\
      --validation_fraction 0.1 --output_dir pets-sweep
"""


def main(argv: list[str]) -> int:
    """Run the command."""
    if not argv or {"-h", "--help"} & {*argv}:
        parser().print_help()
        return 0
    args, flags = _parsed(argv)
    if args.task == "classification" and _flag(flags, "dataset_name") in BENCHMARKS:
        return _sweep_benchmark(_flag(flags, "dataset_name"), args, flags)
    sweep = _checked(args, flags)
    if args.dry_run:
        return _say_plan({"": sweep}, args)
    _show(sweep, _run(sweep, args), args)
    return 0


def read_sweep(argv: list[str]):
    """Read a command line into a `sweep.plan.Sweep`, without running or writing anything.

    Raises:
        InputError: a flag, a method or a setting is invalid.
    """
    return _checked(*_parsed(argv))


def _parsed(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command's arguments, which override those in ``--sweep_file``, and the script's flags."""
    argv = [_underscored(argument) for argument in argv]
    found = parser()
    args, flags = found.parse_known_args(argv)
    given_task, known = args.task, set(vars(args)) - {"sweep_file"}
    args.sections = {}
    if args.sweep_file:
        own, more, sections = read_sweep_file(args.sweep_file, known)
        if own.pop("task", given_task) != given_task:
            raise InputError(f"{args.sweep_file}: is for another task than {given_task}")
        found.set_defaults(**own)
        args, flags = found.parse_known_args(argv)
        given = {flag.partition("=")[0] for flag in flags}
        args.sections, flags = sections, [*(flag for flag in more if flag.partition("=")[0] not in given), *flags]
    return args, _joined(flags)


def _sweep_benchmark(name: str, args: argparse.Namespace, flags: list[str]) -> int:
    """Run a sweep for each task of a benchmark that is in its folder."""
    from onelora_vision.sweep import benchmarks

    folder, root = Path(args.output_dir), _flag(flags, "data_dir")
    if root is None:
        raise InputError(f"--dataset_name {name} needs --data_dir: the folder that the tasks are in")
    sweeps = {}
    for task in benchmarks.tasks_in(benchmarks.BENCHMARKS[name], Path(root)):
        own = argparse.Namespace(**{**vars(args), "output_dir": str(folder / task)})
        sweeps[task] = _checked(own, _with_flag(flags, "dataset_name", f"{name}/{task}"))
    if args.dry_run:
        return _say_plan({f"{task}/": sweep for task, sweep in sweeps.items()}, args)
    path = benchmarks.sweep_tasks(name, sweeps, folder, lambda sweep: _run(sweep, args))
    if args.json:
        rows = {task: benchmarks.rows_of(sweep) for task, sweep in sweeps.items()}
        print(json.dumps({"folder": str(folder), "rows": rows}, indent=2))
    else:
        print(path.read_text(encoding="utf-8"))
    return 0


def _joined(flags: list[str]) -> list[str]:
    """Join each of the script's flags with its value, so different spellings of a command become equal."""
    joined: list[str] = []
    for word in flags:
        takes_value = joined and joined[-1].startswith("--") and "=" not in joined[-1]
        if takes_value and not word.startswith("--"):
            joined[-1] = f"{joined[-1]}={word}"
        else:
            joined.append(word)
    return joined


def _flag(flags: list[str], name: str) -> str | None:
    """The value of one of the script's flags; None if it is not given."""
    return next((flag.partition("=")[2] for flag in flags if flag.startswith(f"--{name}=")), None)


def _with_flag(flags: list[str], name: str, value: str) -> list[str]:
    return [f"--{name}={value}" if flag.startswith(f"--{name}=") else flag for flag in flags]


def _run(sweep, args: argparse.Namespace) -> list[dict]:
    """Do the missing runs, write the report (even of an incomplete sweep), and return its rows."""
    from onelora_vision.sweep.report import write_report
    from onelora_vision.sweep.runner import run_all, run_with_submitit

    sweep.open()
    try:
        if args.engine == "submitit":
            run_with_submitit(sweep, _options(args.engine_options), args.cluster, lambda text: print(text, flush=True))
        else:
            run_all(sweep, *_places(args))
    finally:
        rows = write_report(sweep)
        if args.layout == "peft":
            from onelora_vision.sweep.peft_layout import write_layout

            write_layout(sweep)
    return rows


def parser() -> Parser:
    """Make a parser for the command's own flags. Those of the script remain."""
    found = Parser(prog="onelora sweep", description=DESCRIPTION, allow_abbrev=False)
    found.add_argument("task", metavar="TASK", help="classification, depth, dit or language")
    found.add_argument(
        "--methods",
        default="onelora,lora",
        help="names with commas, also with flags (lora:rank=4) and at another's rate (lora:target_modules=attn@lora)",
    )
    found.add_argument(
        "--learning_rates",
        default="auto",
        help="rates with commas, or auto: each method's own, extended until the best lies inside",
    )
    found.add_argument(
        "--seeds", default="0,1,2", help="seeds of the final runs, with commas; the first chooses rates"
    )
    found.add_argument("--metric", help="what methods are ranked by (default: the task's main metric)")
    found.add_argument("--more_metrics", default="", help="further columns of the table, with commas")
    found.add_argument(
        "--sweep_file", type=a_path, help="YAML with flags of this command and the script, and methods in sections"
    )
    found.add_argument("--output_dir", type=a_path, default="output/sweep", help="folder for runs, tables and plots")
    found.add_argument("--layout", choices=("peft",), help="also write PEFT's experiments/ and results/")
    found.add_argument(
        "--workers", type=int, help="runs at a time (default: one per GPU; on the CPU one per two cores)"
    )
    found.add_argument("--engine", choices=("local", "submitit"), default="local", help="submitit: jobs of SLURM")
    found.add_argument("--engine_options", default="", help="for submitit, such as slurm_partition=gpu,timeout_min=60")
    found.add_argument("--cluster", choices=("slurm", "local"), help="for submitit (default: the one it finds)")
    found.add_argument("--dry_run", action="store_true", help="print the runs that are missing, then stop")
    found.add_argument("--json", action="store_true", help="print the table as JSON")
    return found


def _underscored(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return f"{name.replace('-', '_').replace('__', '--', 1)}{equals}{value}" if name.startswith("--") else argument


#: Flags of the scripts that a sweep sets itself, in addition to the one for the evaluation split.
_OWN = frozenset(
    {
        "method",
        "seed",
        "seeds",
        "learning_rate",
        "head_learning_rate",
        "resume_from_checkpoint",
        "overwrite",
        "dry_run",
    }
)


def _checked(args: argparse.Namespace, flags: list[str]):
    """Make the sweep, after the script itself has checked its flags and methods."""
    from onelora_vision.sweep.benchmarks import benchmark_of
    from onelora_vision.sweep.plan import SCRIPTS, VALIDATION, Run, Sweep

    if args.task not in SCRIPTS:
        raise InputError(f"no task {args.task!r} to sweep{nearest(args.task, SCRIPTS, 'task')}")
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers is {args.workers}, but must be at least 1")
    rates = None if args.learning_rates == "auto" else _numbers(args.learning_rates, float, "--learning_rates")
    seeds = _numbers(args.seeds, int, "--seeds")
    methods, more = _listed(args.methods), _listed(args.more_metrics)
    if not methods:
        raise InputError("--methods is empty: name at least one method")
    sweep = Sweep(Path(args.output_dir), args.task, methods, seeds, rates, args.metric, flags, more_metrics=more)
    benchmark = benchmark_of(_flag(flags, "dataset_name")) if args.task == "classification" else None
    sweep.joins_validation = benchmark is not None and benchmark.joins_validation
    sections = {title: arm_names(names) for title, names in args.sections.items()}
    sections = {title: [name for name in names if name in sweep.arms] for title, names in sections.items()}
    sweep.sections = {title: names for title, names in sections.items() if names}
    given = [flag.removeprefix("--").partition("=")[0] for flag in flags if flag.startswith("--")]
    given += [name for arm in sweep.arms.values() for name, _ in arm.flags]
    if own := next((name for name in given if name in _OWN | {SCRIPTS[args.task].split_flag}), None):
        raise InputError(f"--{own} is set by the sweep: see --methods, --learning_rates and --seeds")
    _options(args.engine_options)
    import importlib

    from onelora_vision.training.command_line import parse_config

    script = importlib.import_module(f"onelora_vision.train_scripts.train_{args.task}")
    config = getattr(script, SCRIPTS[args.task].config)
    for arm in sweep.arms.values():
        parse_config(config, sweep.arguments(Run(arm, 1e-3, seeds[0], VALIDATION)))
    return sweep


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str, kind: type, flag: str) -> list:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{flag} {text}: expected numbers with commas") from None


def _options(text: str) -> dict:
    pairs = [part.partition("=") for part in text.split(",") if part]
    if any(not equals for _, equals, _ in pairs):
        raise InputError(f"--engine_options {text}: expected name=value with commas")
    return {name: int(value) if value.lstrip("-").isdigit() else value for name, _, value in pairs}


def _places(args: argparse.Namespace) -> tuple[int, list[str]]:
    """The number of parallel runs, and the GPU of each, if there are any."""
    from torch.cuda import device_count

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = device_count()  # uses NVML: if CUDA starts in this process, its forks cannot use it
    devices = visible.split(",") if visible else [str(number) for number in range(count)] if visible is None else []
    devices = devices[:count] if count else []
    if args.workers and devices:
        devices = [devices[number % len(devices)] for number in range(args.workers)]
    return args.workers or len(devices) or max(1, (os.cpu_count() or 1) // 2), devices


def _say_plan(sweeps: dict, args: argparse.Namespace) -> int:
    """Print the missing runs of sweeps. Keys are prefixes for the names of the runs."""
    missing = [f"{before}{run.name}" for before, sweep in sweeps.items() for run in sweep.missing()]
    if args.json:
        print(json.dumps({"missing": missing}, indent=2))
        return 0
    for name in missing:
        print(name)
    are_known = all(
        sweep.best_trial(name) for sweep in sweeps.values() for name in sweep.methods if name not in sweep.earlier
    )
    more = "" if are_known else " now, and more that depend on their outcome"
    count = f"{len(missing)} run{'s' * (len(missing) != 1)}" if missing else "nothing is missing"
    print(f"{count}{more}", file=sys.stderr)
    return 0


def _show(sweep, rows: list[dict], args: argparse.Namespace) -> None:
    from onelora_vision.sweep.report import PAGE, cells_of, heads_of, metric_of, note_of

    if args.json:
        print(json.dumps({"folder": str(sweep.folder), "metric": metric_of(sweep), "rows": rows}, indent=2))
        return
    lines = [heads_of(sweep), *(cells_of(row) for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]).rstrip())
    print(f"\n{note_of(sweep, rows)}\n{sweep.folder / PAGE}")
