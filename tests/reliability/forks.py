"""Runs as forks of a process that has the imports done, and ways to kill them at a chosen moment."""

import os
import pathlib
import shutil
import signal
import sys
import time
import traceback
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


class WriteEvents:
    """Counts this process's writes (of files, syncs, renames, deletions) and kills it by SIGKILL at number ``kill_at``.

    Those of its own children, such as a loader's workers, do not count.

    A file's write is cut in the middle: half of its bytes are on the disk. Each event is a line of ``record``, with
    the word "checkpoint" if it belongs to the writing or the rotation of checkpoints.
    """

    def __init__(self, record: Path, kill_at: int | None = None):
        self.record, self.kill_at, self.count = record, kill_at, 0

    def install(self) -> None:
        self.process = os.getpid()
        for owner, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree")):
            self._patch(owner, name, lambda *args: None)
        self._patch(pathlib.Path, "write_bytes", _write_half)
        self._patch(pathlib.Path, "write_text", _write_half)

    def _patch(self, owner, name: str, half) -> None:
        whole = getattr(owner, name)

        def counted(*args, **options):
            if os.getpid() != self.process:
                return whole(*args, **options)
            self.count += 1
            with open(self.record, "a") as file:
                file.write(f"{name} {'checkpoint' if _in_a_checkpoint() else 'other'}\n")
            if self.count == self.kill_at:
                half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(*args, **options)

        setattr(owner, name, counted)


def _write_half(path: Path, content: bytes | str, *rest) -> None:
    content = content.encode() if isinstance(content, str) else content
    with open(path, "wb") as file:
        file.write(content[: len(content) // 2])


def _in_a_checkpoint() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name in ("save_checkpoint", "rotate"):
            return True
        frame = frame.f_back
    return False
