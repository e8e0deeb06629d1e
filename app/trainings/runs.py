"""All trainings in one folder: who may see which, how many there may be, and their progress."""

import hashlib
import itertools
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from onelora_vision.errors import InputError, one_line

from .guide import KINDS, Settings
from .images import Limits, unpack
from .run import DATA, Phase, Training

MAX_RUNNING = 1
NEWEST = 30  # steps that the time left is estimated from


@dataclass(frozen=True)
class Progress:
    """How far a training has come.

    Attributes:
        step, steps: done, and of the whole. seconds_left: None where nothing is known yet.
        text: what it is doing, in words.
    """

    phase: Phase
    step: int
    steps: int
    seconds_left: float | None
    text: str


class Trainings:
    """The trainings of an app.

    Args:
        folder: made when the first training begins.
        source: what the scripts take for the base of a task that a person chose by name.
        refusal: why nothing may be trained here; empty: it may.
        is_shared: whether people who do not know each other use the app; then each sees their own only.
        kept: trainings of one person that are kept at most.
        on_cpu: whether the app was told to stay on the CPU.
    """

    def __init__(
        self,
        folder: Path,
        source: Callable[[str, str], str],
        refusal: str = "",
        is_shared: bool = False,
        limits: Limits | None = None,
        kept: int = 20,
        on_cpu: bool = False,
    ):
        self.folder, self.refusal, self.is_shared, self.limits = Path(folder), refusal, is_shared, limits or Limits()
        self._source, self._kept, self._on_cpu = source, kept, on_cpu
        self._lock = threading.RLock()
        self._children: list[subprocess.Popen] = []

    def of(self, secret: str) -> list[Training]:
        """The trainings that the owner of a secret may see, newest first."""
        own = owner_of(secret)
        return [run for run in self._all() if not self.is_shared or (secret and run.owner == own)]

    def get(self, secret: str, name: str) -> Training:
        """The training of a name.

        Raises:
            InputError: there is none, or it is somebody else's.
        """
        found = next((run for run in self.of(secret) if run.name == name), None)
        if found is None:
            raise InputError(f"no training {one_line(name, 60)!r} of yours")
        return found

    def start(self, secret: str, settings: Settings, archive: Path | None = None) -> Training:
        """Begin a training on the images of a zip, or on the embedded data.

        Raises:
            InputError: it is not allowed here, too many, or not a zip of images in classes.
        """
        if self.refusal:
            raise InputError(self.refusal)
        kind = KINDS[settings.kind]
        source = self._source(kind.task, settings.base)
        if archive is not None and not kind.takes_images:
            raise InputError(
                "depth needs measured depth: train it on the embedded streets here, or with onelora train depth"
            )
        with self._lock:
            self._require_room(secret)
            folder = self._new_folder(kind.script)
            try:
                counts = {} if archive is None else unpack(archive, folder / DATA, self.limits)
                if len(counts) == 1 and kind.script == "classification":
                    raise InputError("one class only: a classifier needs two or more folders of images")
                title = f"{'embedded' if archive is None else archive.stem}-{kind.script}"
                run = Training(folder, settings, source, owner_of(secret), title, counts)
                run.write()
                self._children.append(run.start(self._on_cpu))
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        return run

    def resume(self, secret: str, name: str) -> Training:
        """Continue a training that was stopped or has failed.

        Raises:
            InputError: it is running or finished, another one is running, or nothing may be trained here.
        """
        if self.refusal:
            raise InputError(self.refusal)
        with self._lock:
            run = self.get(secret, name)
            if run.phase() is Phase.FINISHED:
                raise InputError(f"{name} is finished: start a new training")
            self._require_idle()
            self._children.append(run.start(self._on_cpu))
        return run

    def stop(self, secret: str, name: str) -> None:
        """Have a training write a checkpoint and end."""
        self.get(secret, name).stop()

    def remove(self, secret: str, name: str) -> None:
        """Delete a training with all its files."""
        with self._lock:
            self._collect()
            self.get(secret, name).remove()

    def progress(self, run: Training) -> Progress:
        """How far a training has come."""
        self._collect()
        phase, steps = run.phase(), run.settings.steps
        rows = [row for row in run.metrics() if "train/loss" in row]
        step = rows[-1]["step"] if rows else 0
        if phase is Phase.FINISHED:
            return Progress(phase, steps, steps, 0.0, "finished")
        if phase is not Phase.RUNNING:
            return Progress(phase, step, steps, None, run.last_line() or "it ended without a word")
        if not rows:
            return Progress(phase, 0, steps, None, _doing(run.last_line()) or "loading")
        if step >= steps:
            return Progress(phase, step, steps, None, "measuring and drawing the result")
        return Progress(phase, step, steps, _seconds_left(rows, steps), f"step {step} of {steps}")

    def _all(self) -> list[Training]:
        folders = [path for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []
        found = [run for path in folders if not path.name.startswith(".") and (run := Training.read(path))]
        return sorted(found, key=lambda run: run.name, reverse=True)

    def _new_folder(self, script: str) -> Path:
        """A fresh folder, whose name is the time and what is trained; names sort by age."""
        moment = time.strftime("%Y-%m-%d %H.%M.%S")
        for number in range(1, 100):
            folder = self.folder / f"{moment} {script}{'' if number == 1 else f' {number}'}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise InputError(f"--output_dir: trainings cannot be written ({error.strerror})") from None
            return folder
        raise InputError("too many trainings at once: wait a second")

    def _require_room(self, secret: str) -> None:
        if len(self.of(secret)) >= self._kept:
            raise InputError(f"{self._kept} trainings are kept already: delete one in the list first")
        self._require_idle()

    def _require_idle(self) -> None:
        self._collect()
        if sum(run.is_running() for run in self._all()) >= MAX_RUNNING:
            raise InputError("a training is running: wait for its end, or stop it first")

    def _collect(self) -> None:
        """Collect the exit codes of finished processes that this app started."""
        with self._lock:
            self._children = [child for child in self._children if child.poll() is None]


def owner_of(secret: str) -> str:
    """The hash of an owner's secret, which is what a training's file keeps."""
    return hashlib.sha256(secret.encode()).hexdigest() if secret else ""


def _seconds_left(rows: list[dict], steps: int) -> float | None:
    """From the newest steps, evaluations between them included."""
    newest = rows[-NEWEST:]
    times = [row["time"] for row in newest if isinstance(row.get("time"), (int, float))]
    if len(times) < 3:
        return None
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    # A pause, such as between a stop and a resume, is no step.
    usual = statistics.median(gaps)
    step = statistics.fmean(min(gap, 20 * usual + 1) for gap in gaps)
    return step * (steps - newest[-1]["step"])


def _doing(line: str) -> str:
    return line.rstrip(" …") if line.endswith("…") else ""
