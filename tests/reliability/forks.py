"""Runs as forks of a process that has the imports done, and ways to kill them at a chosen moment."""

import json
import os
import pathlib
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

import torch


def fork(run, log: Path, prepare=lambda: None, **environment: str) -> int:
    """Start ``run()`` in a child process whose output goes to ``log``; returns its id. Its SystemExit is its exit."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        # PyTorch makes a fork's thread pool anew on first use, which two threads must not do at once.
        torch.set_num_threads(torch.get_num_threads())
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1), os.dup2(handle, 2)
        os.environ.update(environment)
        prepare()
        run()
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def wait(child: int, seconds: float) -> int | None:
    """The child's exit code (negative: the signal it was killed by), or None if it still runs after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.01)


class Moments:
    """The moments of a run at which it may be killed: its writes, and the seconds within each of its phases.

    Writes are those of files, syncs, renames and deletions by this process; those of its children, such as a loader's
    workers, do not count. Each write and each start of a phase is a JSON line of ``record``, with the phase, the seconds
    since the start, and whether it belongs to the writing or the rotation of checkpoints.

    Args:
        kill_at: a phase and the number of the write in it, from 1, at which the process kills itself by SIGKILL. A
            file's write is cut in the middle: half of its bytes are on the disk.
        kill_in: a phase and the seconds after its start at which the process kills itself.
    """

    def __init__(self, record: Path, kill_at: tuple[str, int] | None = None, kill_in: tuple[str, float] | None = None):
        self.record, self.kill_at, self.kill_in = record, kill_at, kill_in
        self.writes, self.phase = Counter(), "starting"

    def install(self) -> None:
        from onelora_vision.training.setup import Run

        self.process, self.start = os.getpid(), time.monotonic()
        for owner, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (shutil, "rmtree")):
            self._patch(owner, name, lambda *args: None)
        self._patch(pathlib.Path, "write_bytes", _write_half)
        self._patch(pathlib.Path, "write_text", _write_half)
        whole_phase = Run.phase
        Run.phase = lambda run, doing: self._enter(doing) or whole_phase(run, doing)
        self._enter("starting")

    def _enter(self, phase: str) -> None:
        self.phase = phase
        self._note("phase")
        if self.kill_in is not None and self.kill_in[0] == phase:
            timer = threading.Timer(self.kill_in[1], os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()

    def _note(self, event: str) -> None:
        line = {"event": event, "phase": self.phase, "seconds": time.monotonic() - self.start}
        line["checkpoint"] = _in_a_checkpoint()
        with open(self.record, "a") as file:
            file.write(json.dumps(line) + "\n")

    def _patch(self, owner, name: str, half) -> None:
        whole = getattr(owner, name)

        def counted(*args, **options):
            if os.getpid() != self.process:
                return whole(*args, **options)
            self.writes[self.phase] += 1
            self._note(name)
            if (self.phase, self.writes[self.phase]) == self.kill_at:
                half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(*args, **options)

        setattr(owner, name, counted)


def _write_half(path: Path, content: bytes | str, *rest) -> None:
    content = content.encode() if isinstance(content, str) else content
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])


def _in_a_checkpoint() -> bool:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ("save_checkpoint", "rotate"):
            return True
        frame = frame.f_back
    return False
