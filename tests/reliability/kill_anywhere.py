"""Kill training runs by SIGKILL at random moments, resume them, and compare what they end in with an unbroken run.

    python tests/reliability/kill_anywhere.py --kills 50

A third of the kills come at a random time, a third at a random write (in the middle of a file, before a sync, a rename
or a deletion), and a third somewhere in a chosen phase: each in turn, from reading the arguments to publishing. A run is
killed and resumed up to five times before it may end. Prints one JSON line per script.
"""

import argparse
import collections
import itertools
import json
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import environment  # noqa: F401
import jobs
import torch
from forks import Moments, fork, wait

from onelora_vision.storage.files import TEMPORARY_PREFIX

LONGEST = 900  # seconds after which a run counts as hung
KILLS_IN_A_ROW = 5


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scripts", default=",".join(jobs.SCRIPTS))
    parser.add_argument("--kills", type=int, default=50, help="for each script")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    equal = True
    for script in args.scripts.split(","):
        with tempfile.TemporaryDirectory(prefix="kill-") as folder:
            report = kill_and_compare(script, Path(folder), args.kills, random.Random(args.seed), args.workers)
        print(json.dumps(report), flush=True)
        equal = equal and not report["different"]
    return 0 if equal else 1


def kill_and_compare(script: str, folder: Path, kills: int, draw: random.Random, workers: int) -> dict:
    """Kill the script's job ``kills`` times, in as many runs as it takes, and count."""
    flags = {**jobs.make_job(script, folder), "dataloader_num_workers": workers, "resume_from_checkpoint": "latest"}
    job = Job(script, flags, folder)
    record = folder / "record"
    job.attempt("unbroken", record)
    expected, unbroken = jobs.outcome(folder / "unbroken"), read_moments(record)
    chances = Chances(unbroken, draw)
    counts, phases, different = collections.Counter(), collections.Counter(), []
    while counts["kills"] < kills:
        counts["runs"] += 1
        output = f"run-{counts['runs']}"
        for attempt in range(min(KILLS_IN_A_ROW, kills - counts["kills"])):
            way, moment = chances.next(resumed=attempt > 0)
            if not job.attempt(output, record, **moment):
                break  # it was done before the moment came
            last = read_moments(record)[-1]
            counts["kills"] += 1
            counts[way] += 1
            half = last["checkpoint"] if way == "at a write" else _half_a_checkpoint(folder / output)
            counts["writing a checkpoint"] += half
            phases[last["phase"]] += 1
        job.attempt(output, record)
        found = jobs.outcome(folder / output)
        different += [f"{output}: {name}" for name in expected.keys() | found if expected.get(name) != found.get(name)]
    size = {"writes in a run": chances.writes.total(), "seconds of a run": round(chances.seconds, 1)}
    return {"script": script, **counts, "phases": phases, **size, "different": different}


class Chances:
    """The moments to kill a run at, drawn from those that an unbroken run had."""

    def __init__(self, unbroken: list[dict], draw: random.Random):
        self.draw, self.seconds = draw, unbroken[-1]["seconds"]
        starts = [moment for moment in unbroken if moment["event"] == "phase"]
        ends = [*(moment["seconds"] for moment in starts[1:]), self.seconds]
        self.lengths = {start["phase"]: end - start["seconds"] for start, end in zip(starts, ends)}
        self.writes = collections.Counter(moment["phase"] for moment in unbroken if moment["event"] != "phase")
        self.ways = itertools.cycle(("in a phase", "at a write", "at a time"))
        phases = list(self.lengths)
        training = phases.index("training")
        # A run that was killed once has the phases before its training behind it.
        self.first, self.later = itertools.cycle(phases[: training + 1]), itertools.cycle(phases[training:])

    def next(self, resumed: bool) -> tuple[str, dict]:
        """The way to kill the next run, and the arguments of `Job.attempt` for it."""
        way = next(self.ways)
        if way == "at a time":
            shorter = 2 if resumed else 1  # what is left of a resumed run
            return way, {"kill_in": ("starting", self.draw.uniform(0, self.seconds / shorter))}
        phases = self.later if resumed else self.first
        phase = next(phases)
        if way == "in a phase":
            return way, {"kill_in": (phase, self.draw.uniform(0, self.lengths[phase]))}
        while not self.writes[phase]:
            phase = next(phases)
        return way, {"kill_at": (phase, self.draw.randint(1, self.writes[phase]))}


class Job:
    """A script's command, run in forks of this process, each run in a folder of its own."""

    def __init__(self, script: str, flags: dict, folder: Path):
        self.main, self.flags, self.folder = jobs.main_of(script), flags, folder

    def attempt(self, output: str, record: Path, **moment) -> bool:
        """Run, or go on; True if it was killed at the ``moment`` (of `forks.Moments`) before its end.

        Raises:
            RuntimeError: it ended in an error, or not at all.
        """
        argv, log = jobs.arguments(self.flags, self.folder / output), self.folder / f"{output}.log"
        # A cache of its own: what a run keeps for others must not hide what it does.
        cache = {"XDG_CACHE_HOME": str(self.folder / f"{output}-cache")}
        argv += [f"--latents_dir={self.folder / output}-latents"] if "latents_dir" in self.flags else []
        record.write_text("")
        child = fork(lambda: self.main(argv), log, Moments(record, **moment).install, **cache)
        code = wait(child, LONGEST)
        if code is None:
            os.kill(child, signal.SIGKILL)
            wait(child, LONGEST)
            raise RuntimeError(f"{output} did not end in {LONGEST} s:\n{log.read_text()[-3000:]}")
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{output} ended with {code}:\n{log.read_text()[-3000:]}")
        return code != 0


def read_moments(record: Path) -> list[dict]:
    """The events that a run recorded."""
    return [json.loads(line) for line in record.read_text().splitlines()]


def _half_a_checkpoint(output: Path) -> bool:
    """Whether a kill left a half-written checkpoint: a temporary folder with its files."""
    names = ("state.json", "trained.safetensors", "training_state.pt")
    return any((part / name).exists() for part in output.glob(f"{TEMPORARY_PREFIX}*") for name in names)


if __name__ == "__main__":
    sys.exit(main())
