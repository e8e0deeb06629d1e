"""Kill training runs by SIGKILL at random moments, resume them, and compare what they end in with an unbroken run.

    python tests/reliability/kill_anywhere.py --kills 50

Half of the kills come at a random time, half at a random write: in the middle of a file, before a sync, a rename or a
deletion. A run is killed and resumed up to five times before it may end. Prints one JSON line per script.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import environment  # noqa: F401
import jobs
import torch
from forks import WriteEvents, fork, wait

LONGEST = 300  # seconds after which a run counts as hung
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
    start = time.monotonic()
    job.attempt("unbroken", job.events)
    seconds, expected = time.monotonic() - start, jobs.outcome(folder / "unbroken")
    moments = job.events.read_text().split("\n")[:-1]
    counts = {"script": script, "kills": 0, "at a time": 0, "at a write": 0, "writing a checkpoint": 0, "runs": 0}
    different = []
    while counts["kills"] < kills:
        counts["runs"] += 1
        output = f"run-{counts['runs']}"
        for attempt in range(min(KILLS_IN_A_ROW, kills - counts["kills"])):
            at_write = draw.random() < 0.5
            shorter = 2 if attempt else 1  # what is left of a resumed run
            number = draw.randint(1, len(moments) // shorter) if at_write else None
            delay = LONGEST if at_write else draw.uniform(0, seconds / shorter)
            record = folder / "record"
            record.write_text("")
            if not job.attempt(output, record, number, delay):
                break  # it was done before the moment came
            counts["kills"] += 1
            counts["at a write" if at_write else "at a time"] += 1
            last = record.read_text().split("\n")[-2:][0]
            half = at_write and last.endswith("checkpoint")
            counts["writing a checkpoint"] += half or (not at_write and _half_a_checkpoint(folder / output))
        job.attempt(output, folder / "record")
        found = jobs.outcome(folder / output)
        different += [f"{output}: {name}" for name in expected.keys() | found if expected.get(name) != found.get(name)]
    return {**counts, "writes in a run": len(moments), "seconds of a run": round(seconds, 1), "different": different}


class Job:
    """A script's command, run in forks of this process, each run in a folder of its own."""

    def __init__(self, script: str, flags: dict, folder: Path):
        self.main, self.flags, self.folder = jobs.main_of(script), flags, folder
        self.events = folder / "events"

    def attempt(self, output: str, record: Path, kill_at: int | None = None, delay: float = LONGEST) -> bool:
        """Run, or go on; True if it was killed, at write ``kill_at`` or after ``delay`` seconds, before its end.

        Raises:
            RuntimeError: it ended in an error, or not at all.
        """

        argv, log = jobs.arguments(self.flags, self.folder / output), self.folder / f"{output}.log"
        # A cache of its own: what a run keeps for others must not hide what it does.
        cache = {"XDG_CACHE_HOME": str(self.folder / f"{output}-cache")}
        argv += [f"--latents_dir={self.folder / output}-latents"] if "latents_dir" in self.flags else []
        child = fork(lambda: self.main(argv), log, WriteEvents(record, kill_at).install, **cache)
        code = wait(child, delay)
        if code is None:
            os.kill(child, signal.SIGKILL)
            code = wait(child, LONGEST)
            if delay >= LONGEST:
                raise RuntimeError(f"{output} did not end in {LONGEST} s:\n{log.read_text()[-3000:]}")
        if code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{output} ended with {code}:\n{log.read_text()[-3000:]}")
        return code != 0


def _half_a_checkpoint(output: Path) -> bool:
    """Whether a kill left a half-written checkpoint: a temporary folder with its files."""
    names = ("state.json", "trained.safetensors", "training_state.pt")
    return any((part / name).exists() for part in output.glob(".partial-*") for name in names)


if __name__ == "__main__":
    sys.exit(main())
