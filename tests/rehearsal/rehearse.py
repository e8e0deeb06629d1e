"""Run every recipe and every documented command on published models, offline, two steps each.

The hub's cache and the datasets are made on the spot, with random weights and pixels in the published names, shapes and
layouts. Nothing is downloaded and no metric means anything; what is tried is whether the commands run, and what they need.

Examples:
  python tests/rehearsal/rehearse.py                        # true sizes: 12 GB of memory (full fine-tuning: 32), 40 GB of disk
  python tests/rehearsal/rehearse.py --small                # the same commands on tiny models
  python tests/rehearsal/rehearse.py --only 'dit/*onelora/*' --keep
  python tests/rehearsal/rehearse.py --list
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipe_steps import LAUNCH, Step, all_steps, chosen

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
#: Lines of libraries that no user should have to read.
NOISE = re.compile(
    r"Warning\b|[Dd]eprecat|newly initialized|UNEXPECTED|MISSING|unauthenticated"
    r"|Loading weights|Writing model shards|Loading pipeline|An error occurred|Could not reach|will be ignored|Defaulting to|There are modules"
    r"|^\[transformers\]"
)
LAST_LINES = 20


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, seconds, the most memory of one of its processes in bytes, and its output."""

    name: str
    code: int
    seconds: float
    memory: int
    log: Path

    def __str__(self) -> str:
        result = "ok" if self.code == 0 else f"exit {self.code}"
        return f"{result:8} {self.seconds:7.1f} s {self.memory / 1e9:6.2f} GB  {self.name}"

    @property
    def noise(self) -> list[str]:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return list(dict.fromkeys(line.strip()[:200] for line in lines if NOISE.search(line)))


def environment(stage: Path) -> dict[str, str]:
    """Caches inside ``stage``, no network, and this checkout."""
    inherited = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **{
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))
        },
        "HF_HOME": str(stage / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "TORCH_HOME": str(stage / "torch"),
        "XDG_CACHE_HOME": str(stage / "cache"),
        "MPLBACKEND": "Agg",
        "PYTHONPATH": os.pathsep.join(inherited),
    }


class Processes:
    """Runs each command in a process of its own, from its first import on."""

    def __init__(self, stage: Path):
        self.stage = stage

    def run(self, name: str, words: Sequence[str]) -> Outcome:
        log, begin = self.log(name, words), time.monotonic()
        with open(log, "a", encoding="utf-8") as output:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(words, cwd=self.stage, env=environment(self.stage), **pipes)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        unit = 1 if sys.platform == "darwin" else 1024
        return Outcome(name, process.returncode, time.monotonic() - begin, usage.ru_maxrss * unit, log)

    def log(self, name: str, words: Sequence[str]) -> Path:
        """The file for a command's output, with the command in it."""
        path = self.stage / "logs" / f"{name.replace('/', '-')}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"$ {shlex.join(words)}\n", encoding="utf-8")
        return path

    def close(self) -> None:
        """End what still runs."""


class Forks(Processes):
    """Runs commands in forks of a process that has the imports done: on tiny models most of the time would be theirs.

    They start without accelerate's launcher. Their memory is not known apart from that process's, and reported as 0.
    """

    def __init__(self, stage: Path):
        super().__init__(stage)
        sys.path.insert(0, str(ROOT / "tests"))
        from forked_python import ForkedPython
        from processes import IMPORTS

        self.python = ForkedPython(IMPORTS, environment=environment(stage), folder=stage)

    def run(self, name: str, words: Sequence[str]) -> Outcome:
        program = words[len(LAUNCH) :] if words[: len(LAUNCH)] == LAUNCH else words[1:]
        if program[:2] == ("-m", "onelora_vision.cli"):
            program = (ROOT / "onelora_vision" / "cli" / "__main__.py", *program[2:])
        if name == "build":
            return super().run(name, words)
        log, begin = self.log(name, words), time.monotonic()
        ((code, output, errors),) = self.python.together((program, {}))
        with open(log, "a", encoding="utf-8") as file:
            file.write(output + errors)
        return Outcome(name, code, time.monotonic() - begin, 0, log)

    def close(self) -> None:
        self.python.close()


def report(outcome: Outcome) -> None:
    print(outcome, flush=True)
    for line in outcome.noise:
        print(f"    ~ {line}")
    if outcome.code:
        for line in outcome.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]:
            print(f"    | {line}")


def build(steps: Sequence[Step], runner: Processes, small: bool) -> Outcome | None:
    """Write what the steps need and is not there yet; None if all is."""
    stage = runner.stage
    marks = stage / "built"
    marks.mkdir(exist_ok=True)
    names = dict.fromkeys(name for step in steps for name in step.needs)
    absent = [name for name in names if not (marks / name.replace("/", "--")).exists()]
    if not absent:
        return None
    words = (sys.executable, str(FOLDER / "build.py"), str(stage), "small" if small else "true", *absent)
    outcome = runner.run("build", words)
    if outcome.code == 0:
        for name in absent:
            (marks / name.replace("/", "--")).touch()
    return outcome


def rehearse(steps: Sequence[Step], runner: Processes, small: bool, keep: bool) -> list[Outcome]:
    """Build and run; a step whose inputs failed is left out, and outputs go as soon as no later step takes them."""
    outcomes: list[Outcome] = []
    if built := build(steps, runner, small):
        report(built)
        outcomes.append(built)
        if built.code:
            return outcomes
    failed: set[str] = set()
    for number, step in enumerate(steps):
        if failed.intersection(step.after):
            failed.add(step.name)
            print(f"left out: {step.name}", flush=True)
        else:
            remove_output(step, runner.stage)  # of an earlier rehearsal in this folder
            outcomes.append(runner.run(step.name, step.words))
            report(outcomes[-1])
            if outcomes[-1].code:
                failed.add(step.name)
        if not keep:
            remove_outputs(steps[: number + 1], steps[number + 1 :], runner.stage)
    return outcomes


def remove_outputs(done: Sequence[Step], to_come: Sequence[Step], stage: Path) -> None:
    """Delete what the finished steps made and no later one takes, itself or with what another one made of it."""
    inputs = {step.name: step.after for step in done}
    taken, waiting = set(), [name for step in to_come for name in step.after]
    while waiting:
        name = waiting.pop()
        if name not in taken:
            taken.add(name)
            waiting += inputs.get(name, ())
    for step in done:
        if step.name not in taken:
            remove_output(step, stage)


def remove_output(step: Step, stage: Path) -> None:
    if step.makes:
        path = stage / step.makes
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def summary(outcomes: Sequence[Outcome], steps: Sequence[Step]) -> str:
    """The slowest and the largest first, and how many failed."""
    failed = [outcome for outcome in outcomes if outcome.code]
    run_steps = [outcome for outcome in outcomes if outcome.name != "build"]
    noisy = sum(bool(outcome.noise) for outcome in run_steps)
    lines = [
        "",
        f"{len(run_steps)} of {len(steps)} commands run, {len(failed)} failed, {noisy} with lines of libraries",
    ]
    lines += [str(outcome) for outcome in failed]
    for title, key in (("slowest", "seconds"), ("most memory", "memory")):
        lines += ["", f"{title}:", *map(str, sorted(run_steps, key=lambda found: -getattr(found, key))[:5])]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    parsed = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parsed.add_argument("--small", action="store_true", help="tiny models instead of the true sizes")
    parsed.add_argument("--only", default="*", help="steps whose name matches, such as 'depth' or '*/sample'")
    parsed.add_argument("--list", action="store_true", help="print the commands and run nothing")
    parsed.add_argument("--keep", action="store_true", help="keep models, data and outputs, and say where they are")
    parsed.add_argument(
        "--folder", help="where all is written (default: a temporary folder); models there are used again"
    )
    return parsed


def main() -> int:
    args = parser().parse_args()
    steps = chosen(all_steps(args.small), args.only)
    if not steps:
        print(f"no step matches {args.only!r}; --list shows their names", file=sys.stderr)
        return 2
    if args.list:
        for step in steps:
            print(f"{step.name}\n    {shlex.join(step.words)}")
        return 0
    stage = Path(args.folder or tempfile.mkdtemp(prefix="rehearsal-")).resolve()
    stage.mkdir(parents=True, exist_ok=True)
    runner = (Forks if args.small else Processes)(stage)
    try:
        outcomes = rehearse(steps, runner, args.small, args.keep)
        print(summary(outcomes, steps))
    finally:
        runner.close()
        if args.keep:
            print(f"kept: {stage}")
        elif not args.folder:
            shutil.rmtree(stage)
    return int(any(outcome.code for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
