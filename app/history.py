"""Drawings on disk: a folder per drawing, with its PNGs, which store how they were drawn, and a contact sheet."""

import json
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onelora_vision.errors import InputError, one_line
from onelora_vision.storage.files import atomic_directory, write_json

from .sheets import sheet

SHOWN = 40  # newest drawings in the strip, besides those with a star
ABOUT, SHEET = "drawing.json", "sheet.png"


@dataclass(frozen=True)
class Kept:
    """A drawing that was kept.

    Attributes:
        pictures: the adapted pictures, or the base's where nothing else was drawn; others: the base's next to them.
        text: what was drawn, in words.
    """

    folder: Path
    text: str
    starred: bool
    pictures: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def sheet(self) -> Path:
        return self.folder / SHEET

    @property
    def first(self) -> Path:
        """A picture whose settings are those of the drawing."""
        return self.folder / self.pictures[0]

    def parts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The base's pictures, and the adapted ones."""
        is_base_alone = all(name.endswith("-base.png") for name in self.pictures)
        return (self.pictures, ()) if is_base_alone else (self.others, self.pictures)

    def about(self) -> dict:
        return {"text": self.text, "starred": self.starred, "pictures": self.pictures, "others": self.others}


class History:
    """The drawings in a folder, which is created when the first one is kept.

    Args:
        most: drawings without a star to keep; None: all, until somebody deletes them.
    """

    def __init__(self, folder: Path, most: int | None = None):
        self.folder, self._most = Path(folder), most
        self._lock = threading.Lock()

    def add(self, text: str, pictures: Sequence[Path], others: Sequence[Path]) -> Kept:
        """Keep copies of a drawing's pictures. If there are too many drawings, the oldest are deleted."""
        with self._lock:
            kept = Kept(self._fresh(), text, False, tuple(p.name for p in pictures), tuple(p.name for p in others))
            with atomic_directory(kept.folder) as temporary:
                for file in (*pictures, *others):
                    shutil.copyfile(file, temporary / file.name)
                sheet(pictures).save(temporary / SHEET)
                write_json(temporary / ABOUT, kept.about())
            if self._most is not None:
                for old in [one for one in self._all() if not one.starred][self._most :]:
                    self._delete(old)
        return kept

    def shown(self) -> list[Kept]:
        """The drawings for the strip, newest first: the newest ones, and all starred ones."""
        found = self._all()
        return [one for number, one in enumerate(found) if number < SHOWN or one.starred]

    def get(self, name: str | None) -> Kept:
        """The drawing of a name.

        Raises:
            InputError: there is none.
        """
        found = next((one for one in self._all() if one.name == name), None)
        if found is None:
            what = f"no drawing {one_line(name, 60)!r}" if name else "choose a drawing in the strip first"
            raise InputError(what)
        return found

    def star(self, name: str | None) -> Kept:
        """Give a drawing a star, or take it away."""
        with self._lock:
            old = self.get(name)
            new = Kept(old.folder, old.text, not old.starred, old.pictures, old.others)
            write_json(new.folder / ABOUT, new.about())
        return new

    def remove(self, name: str | None) -> None:
        """Delete a drawing with its files.

        Raises:
            InputError: there is none, or its folder has other files.
        """
        with self._lock:
            self._delete(self.get(name))

    def _all(self) -> list[Kept]:
        folders = [path for path in self.folder.iterdir() if path.is_dir()] if self.folder.is_dir() else []
        found = [kept for path in folders if not path.name.startswith(".") and (kept := _read(path))]
        return sorted(found, key=lambda kept: kept.name, reverse=True)

    def _fresh(self) -> Path:
        """A name that is not taken; names sort by age."""
        moment = time.strftime("%Y-%m-%d %H.%M.%S")
        number = next(n for n in range(1000) if not (self.folder / f"{moment} {n:03}").exists())
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{moment} {number:03}"

    @staticmethod
    def _delete(kept: Kept) -> None:
        own = {ABOUT, SHEET, *kept.pictures, *kept.others}
        other = sorted({path.name for path in kept.folder.iterdir()} - own)
        if other:
            raise InputError(
                f"{kept.name}: contains {one_line(other[0], 60)}, which this app did not write; move it away"
            )
        for name in own:
            (kept.folder / name).unlink(missing_ok=True)
        kept.folder.rmdir()


def _read(folder: Path) -> Kept | None:
    """The drawing in a folder, or None if there is no complete one."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        pictures, others = tuple(about["pictures"]), tuple(about["others"])
        names = (*pictures, *others, SHEET)
        if not pictures or any(Path(name).name != name or not (folder / name).is_file() for name in names):
            return None
        return Kept(folder, str(about["text"]), bool(about["starred"]), pictures, others)
    except (OSError, ValueError, KeyError, TypeError):
        return None
