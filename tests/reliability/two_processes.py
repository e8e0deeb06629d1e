"""Run the scripts on two processes over gloo: as far as one process gets; with the base shared between them; and with
one of the two killed, then resumed.

    python tests/reliability/two_processes.py --scripts depth

Prints one JSON line per script.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import environment  # noqa: F401
import jobs
import torch
from forks import fork, wait
from processes import environments

LONGEST = 900  # seconds after which a process counts as hung


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scripts", default=",".join(jobs.SCRIPTS))
    parser.add_argument("--victims", default="0,1", help="numbers of the processes to kill, each in a run of its own")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for script in args.scripts.split(","):
        with tempfile.TemporaryDirectory(prefix="two-") as folder:
            victims = [int(victim) for victim in args.victims.split(",")]
            print(json.dumps(report(script, Path(folder), victims)), flush=True)
    return 0


def report(script: str, folder: Path, victims: list[int]) -> dict:
    """The figures of one process and of two, and how runs ended in which one of ``victims`` was killed."""
    job = Job(script, folder)
    alone = job.run("alone", 1, train_batch_size=4)
    both = job.run("both", 2)
    found = {"script": script, "codes": [alone[0], both[0]]}
    found["figures"] = [jobs.outcome(folder / name)["metrics"]["after"] for name in ("alone", "both")]
    found["losses"] = [jobs.logged(folder / name)["train/loss"] for name in ("alone", "both")]
    sharded = job.run("sharded", 2, shard_base=True)
    found["sharded"] = {"codes": sharded[0], **what_came_out(folder / "sharded"), "as": what_came_out(folder / "both")}
    for victim in victims:
        output = f"killed-{victim}"
        codes, seconds, logs = job.run(output, 2, victim)
        lines = [line for line in logs[1 - victim].splitlines() if line.startswith("error: ")]
        resumed, *_ = job.run(output, 2)
        same = jobs.outcome(folder / output) == jobs.outcome(folder / "both")
        found[output] = {"codes": codes, "seconds": seconds, "errors": lines, "resumed": resumed, "same": same}
    return found


def what_came_out(output: Path) -> dict:
    """Figures, losses and files of a run, which is like another but for rounding."""
    found = jobs.outcome(output)
    return {
        "figures": found["metrics"],
        "losses": [loss for _, loss in found["logs"]["train/loss"]],
        "files": found["files"],
    }


class Job:
    """A script's command, on one or two forks of this process."""

    def __init__(self, script: str, folder: Path):
        self.main, self.folder = jobs.main_of(script), folder
        self.flags = {**jobs.make_job(script, folder), "resume_from_checkpoint": "latest"}

    def run(self, output: str, processes: int, victim: int | None = None, **changes) -> tuple[list, float, list[str]]:
        """The processes' exit codes, the seconds that the others lived on after a victim's end, and their output."""
        argv = jobs.arguments(self.flags, self.folder / output, **changes)
        children, logs = [], []
        places = environments(processes, XDG_CACHE_HOME=str(self.folder / "cache"))
        for rank, place in enumerate(places):
            logs.append(self.folder / f"{output}-{rank}-{time.monotonic_ns()}.log")
            prepare = kill_in_step_five if rank == victim else lambda: None
            children.append(fork(lambda: self.main(argv), logs[-1], prepare, **place))
        seconds = 0.0
        if victim is not None:
            wait_for(children[victim])
            start = time.monotonic()
        codes = [-signal.SIGKILL if rank == victim else wait_for(child) for rank, child in enumerate(children)]
        if victim is not None:
            seconds = time.monotonic() - start
        return codes, seconds, [log.read_text() for log in logs]


def wait_for(child: int) -> int | None:
    """The exit code; a child that does not end in `LONGEST` seconds is killed, and None."""
    code = wait(child, LONGEST)
    if code is None:
        os.kill(child, signal.SIGKILL)
        wait(child, LONGEST)
    return code


def kill_in_step_five() -> None:
    """Have this process kill itself when it should apply its fifth step's gradients."""
    from onelora_vision.training.step import OptimizerStep

    update, calls = OptimizerStep._update, []

    def update_or_die(step: OptimizerStep) -> None:
        calls.append(step)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        update(step)

    OptimizerStep._update = update_or_die


if __name__ == "__main__":
    sys.exit(main())
