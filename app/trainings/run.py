"""One training: a process that outlives the app, and a folder with its whole state.

The folder has ``job.json`` (settings, owner, process), ``log.txt`` (what the process printed), ``data`` (images that were
sent) and ``run``, the ``--output_dir`` of ``onelora train``.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import psutil

import onelora_vision
from onelora_vision.errors import InputError, one_line
from onelora_vision.storage.files import write_json
from onelora_vision.storage.outputs import LEDGER, Ledger

from .guide import KINDS, Settings, flags_of

JOB, LOG, DATA, RUN = "job.json", "log.txt", "data", "run"
_METRICS = "logs/metrics.jsonl"  # below the run: what --report_to jsonl writes
_LOCK = ".onelora-lock"  # of the run's folder
_CLOCK = 5.0  # seconds that a clock may have been set by since
_TAIL = 16 << 10  # bytes of the log that are looked at


class Phase(Enum):
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"  # can be resumed from a checkpoint
    FAILED = "failed"


@dataclass
class Training:
    """A training in its folder.

    Attributes:
        owner: a hash of the secret that its owner's browser keeps.
        title: what its adapter is called.
        counts: images of each class that were sent; empty for the embedded data.
        source: what the script takes as the base.
        process: id and start time of the last process that ran it.
    """

    folder: Path
    settings: Settings
    source: str
    owner: str = ""
    title: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    process: tuple[int, float] | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def adapter(self) -> Path:
        """Where the finished adapter is."""
        return self.folder / RUN / "adapter"

    @property
    def task(self) -> str:
        return KINDS[self.settings.kind].task

    @classmethod
    def read(cls, folder: Path) -> "Training | None":
        """The training in a folder, or None if there is none that can be read."""
        try:
            said = json.loads((folder / JOB).read_text(encoding="utf-8"))
            process = tuple(said["process"]) if said["process"] else None
            settings = Settings.of(said["settings"])
            texts = (str(said[name]) for name in ("source", "owner", "title"))
            return cls(folder, settings, *texts, dict(said["counts"]), process)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self) -> None:
        said = {"settings": self.settings.as_dict(), "source": self.source, "owner": self.owner, "title": self.title}
        write_json(self.folder / JOB, {**said, "counts": self.counts, "process": self.process})

    def start(self, on_cpu: bool = False) -> subprocess.Popen:
        """Begin it, or continue from its last checkpoint, in a process of its own session.

        Args:
            on_cpu: whether the app was told to stay on the CPU.

        Raises:
            InputError: it is running.
        """
        if self.is_running():
            raise InputError(f"{self.name} is running already")
        data = self.folder / DATA if self.counts else None
        flags = flags_of(self.settings, self.source, data, self.folder / RUN)
        command = [sys.executable, "-m", "onelora_vision.cli", "train", *flags, "--resume_from_checkpoint", "latest"]
        if shutil.which("nice"):  # drawing comes first
            command = ["nice", "-n", "10", *command]
        places = [str(Path(onelora_vision.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places)), "PYTHONUNBUFFERED": "1"}
        env |= {"ACCELERATE_USE_CPU": "true"} if on_cpu else {}
        with open(self.folder / LOG, "ab") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True
            )
        self.process = (child.pid, _start_of(child.pid) or 0.0)
        self.write()
        return child

    def is_running(self) -> bool:
        """Whether its process is alive. Another process that was given its number does not count."""
        if self.process is None:
            return False
        start = _start_of(self.process[0])
        return start is not None and abs(start - self.process[1]) < _CLOCK

    def stop(self) -> None:
        """Ask the process to write a checkpoint and end."""
        if self.is_running():
            os.kill(self.process[0], signal.SIGTERM)

    def phase(self) -> Phase:
        if self.is_running():
            return Phase.RUNNING
        if self._results().get("phase") == "complete":
            return Phase.FINISHED
        was_stopped = self.last_line().startswith("stopped by") or not self.last_line().startswith("error:")
        return Phase.STOPPED if was_stopped else Phase.FAILED

    def metrics(self) -> list[dict]:
        """What it has logged: objects with ``step``, ``time`` and metrics, in order."""
        found = []
        try:
            with open(self.folder / RUN / _METRICS, encoding="utf-8") as file:
                for line in file:
                    try:
                        found.append(json.loads(line))
                    except ValueError:  # the last one may be half written
                        continue
        except OSError:
            pass
        return [row for row in found if isinstance(row, dict) and isinstance(row.get("step"), int)]

    def pictures(self) -> list[Path]:
        """What it has drawn so far on the same noise, newest last; at its end also the final picture."""
        drawn = sorted((self.folder / RUN / "validation").glob("step-*.png"))
        final = [self.folder / RUN / name for name in ("samples.png", "pictures.png", "predictions.png")]
        return drawn + [path for path in final if path.is_file()]

    def report(self) -> Path | None:
        path = self.folder / RUN / "report.html"
        return path if path.is_file() else None

    def before_and_after(self) -> tuple[dict, dict]:
        metrics = self._results().get("metrics") or {}
        return metrics.get("before") or {}, metrics.get("after") or {}

    def last_line(self) -> str:
        """The last line that the process printed."""
        try:
            with open(self.folder / LOG, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                lines = re.split(r"[\r\n]+", file.read().decode(errors="replace").strip())
        except OSError:
            return ""
        return one_line(lines[-1], 400)

    def remove(self) -> None:
        """Delete the training with all its files.

        Raises:
            InputError: it is running, or there are files in its folder that this program did not write.
        """
        if self.is_running():
            raise InputError(f"{self.name} is running: stop it first")
        foreign = [name for name in _foreign(self.folder / RUN) if name not in (_LOCK, _METRICS)]
        extra = {entry.name for entry in self.folder.iterdir()} - {JOB, LOG, DATA, RUN}
        if foreign or extra:
            raise InputError(
                f"{self.name} contains files that this app did not write: {', '.join(sorted([*foreign, *extra])[:4])}; "
                "move them away first"
            )
        doomed = self.folder.with_name(f".deleted-{self.name}")
        os.replace(self.folder, doomed)
        shutil.rmtree(doomed)

    def _results(self) -> dict:
        try:
            found = json.loads((self.folder / RUN / "results.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _foreign(folder: Path) -> list[str]:
    """Files in a run's folder that no ledger has, besides checkpoints."""
    ledger = Ledger.read(folder)
    inner = {path.parent: Ledger.read(path.parent) for path in folder.glob(f"*/{LEDGER}")}
    found = [f"{place.name}/{name}" for place, own in inner.items() if own for name in own.foreign()]
    names = (ledger or Ledger(folder, "run")).foreign()
    own = re.compile("|".join([r"checkpoint-\d+/", *(f"{re.escape(place.name)}/" for place in inner)]))
    return [*found, *(name for name in names if not own.match(name))]


def _start_of(pid: int) -> float | None:
    """When a process started, in seconds since 1970; None if there is none, or it has ended and waits to be collected."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
