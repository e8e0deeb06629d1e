"""A run's output folder: locked by one run at a time, and never overwriting foreign files."""

import contextlib
import fcntl
import io
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from onelora_vision.errors import InputError, listed
from onelora_vision.storage.files import TEMPORARY_PREFIX, clear_leftovers
from onelora_vision.storage.outputs import LEDGER, Ledger

KIND = "run"
LOCK = ".onelora-lock"
_CHECKPOINT = re.compile(r"checkpoint-\d+")
_CHECKPOINT_FILES = {"trained.safetensors", "ema.safetensors", "training_state.pt", "state.json"}
_FOLDERS = ("adapter", "adapter_without_ema", "best", "validation", "evaluations")
_FILES = ("config.yaml", "results.json", "report.html", "per_class_accuracy.json", "guidance.json", "examples.json")
_PICTURES = ("loss", "samples", "pictures", "predictions", "confusion", "reliability", "guidance")


class RunFolder:
    """The ``--output_dir`` of a run. A run may only write names that are free or its own (see `outputs`).

    Foreign files next to a run's, such as a batch system's log, are never touched. Neither are the logs of an earlier
    run: trackers add files and never replace any.

    Args:
        path: the folder; created if it does not exist.
    """

    _locks: dict[Path, io.TextIOBase] = {}

    def __init__(self, path: str | os.PathLike):
        self.path = Path(os.path.realpath(path))
        self.given, self.is_new = str(path), False
        self.ledger = Ledger.read(self.path) or Ledger(self.path, KIND)

    def take(self) -> None:
        """Create the folder and lock it against other runs until this process ends.

        Raises:
            InputError: another process has locked it, it is not writable, or it is an output of another kind.
        """
        if self.ledger.kind != KIND:
            raise InputError(f"--output_dir {self.given} is an output of another kind ({self.ledger.kind})")
        if self.path in self._locks:
            return
        self.is_new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = open(self.path / LOCK, "a")  # noqa: SIM115 - kept open: closing it releases the lock
        except OSError as error:
            raise InputError(f"--output_dir {self.given} cannot be written: {error.strerror}") from None
        try:
            # A POSIX lock, not flock: loader workers, which can outlive a killed run by seconds, do not inherit it.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            handle.close()
            raise InputError(f"--output_dir {self.given} is in use by another run; choose another one") from None
        self._locks[self.path] = handle
        for folder in (self.path, *(self.path / name for name in _FOLDERS)):
            clear_leftovers(folder)

    def remove_if_empty(self) -> None:
        """Remove the folder if `take` created it and it contains nothing but the lock."""
        with contextlib.suppress(OSError):
            if self.is_new and [path.name for path in self.path.iterdir()] == [LOCK]:
                (self.path / LOCK).unlink()
                self.path.rmdir()
                self._locks.pop(self.path).close()

    def require_free(self, resumes: bool, overwrite: bool) -> None:
        """Refuse to overwrite anything but this run's own files.

        Args:
            resumes: whether the run continues the one whose files are here. overwrite: whether it replaces it.

        Raises:
            InputError: foreign or modified files have names that the run needs, or there is an earlier run and neither
                ``resumes`` nor ``overwrite``.
        """
        foreign = [name for name in self._names() if not self._is_ours(name)]
        if foreign:
            raise InputError(
                f"--output_dir {self.given} contains files that a run writes, but which this program did not write or "
                f"which were changed since: {listed(foreign)}; move them away or choose another folder"
            )
        if self.has_trained() and not resumes and not overwrite:
            names = listed(self._names(), 3)
            if not any(map(_CHECKPOINT.fullmatch, self._names())):
                raise InputError(
                    f"--output_dir {self.given} contains an earlier run ({names}), but no checkpoint to continue it from: "
                    "replace it with --overwrite, or choose another folder"
                )
            raise InputError(
                f"--output_dir {self.given} contains an earlier run ({names}): continue it with "
                "--resume_from_checkpoint latest, replace it with --overwrite, or choose another folder"
            )

    def has_trained(self) -> bool:
        """Whether an earlier run got far enough here that overwriting it would lose something."""
        return any(name == "adapter" or _CHECKPOINT.fullmatch(name) for name in self._names())

    def contains(self, path: Path | None) -> bool:
        """Whether ``path`` is inside this folder."""
        return path is not None and self.path in path.resolve().parents

    def clear(self) -> None:
        """Delete the files of the earlier run, all of which `require_free` has confirmed to be ours."""
        for name in list(self._names()):
            entry = self.path / name
            # Renamed first: an interrupted deletion must not leave half a checkpoint under a checkpoint's name.
            doomed = entry.with_name(f"{TEMPORARY_PREFIX}{name}")
            os.replace(entry, doomed)
            shutil.rmtree(doomed) if doomed.is_dir() else doomed.unlink()

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a temporary path that becomes the file ``name`` in this folder and is recorded as ours.

        Raises:
            InputError: a foreign file has that name. WriteError: it cannot be written.
        """
        if not (self.path / LEDGER).exists():
            self.ledger.create()
        with self.ledger.writing_file(name) as temporary:
            yield temporary

    def _names(self) -> Iterator[str]:
        """Entries of the folder with names that runs use."""
        for entry in sorted(self.path.iterdir()) if self.path.is_dir() else ():
            pictures = (f"{name}.png" for name in _PICTURES)
            if entry.name in (*_FOLDERS, *_FILES, *pictures) or _CHECKPOINT.fullmatch(entry.name):
                yield entry.name

    def _is_ours(self, name: str) -> bool:
        path = self.path / name
        if path.is_symlink():
            return False
        if not path.is_dir():
            return not self.ledger.foreign([name])
        files = [file for file in path.rglob("*") if not file.is_dir() or file.is_symlink()]
        if _CHECKPOINT.fullmatch(name):
            return all(file.name in _CHECKPOINT_FILES and file.parent == path for file in files)
        inner = Ledger.read(path)
        if inner is not None:
            return not inner.foreign()
        return not self.ledger.foreign(file.relative_to(self.path).as_posix() for file in files)
