"""One user's adapters, weights and output files. Users never see each other's sessions."""

import itertools
import shutil
import tempfile
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from onelora_vision.errors import InputError, nearest

from .history import History
from .library import Entry, Library, unique_name
from .mix import Mix
from .pace import Pace
from .runs import Runs

MAX_SESSIONS = 100
MAX_OWN = 24  # adapters that one user may add
WEIGHT_LIMIT = 2.0
KEPT_OUTPUTS = 8
KEPT_DRAWINGS = 30  # of a session that does not keep them on disk


@dataclass
class Session:
    """One user's adapters and drawings.

    Attributes:
        own: the adapters that the user added, by name. trained: those of the user's trainings, by the training's name.
        weights: weights that the user set, by name of the adapter.
        enabled: names of the adapters that take part.
        drawings, grids, strips, depths: the state of what is being drawn, and of the depth of many pictures.
        pace: how long answers take. history: what was drawn; None: it is not kept.
        guided_by: the adapters that the page's guidance was set for.
        pictures, asked_about: the newest picture of a task, and the one that was asked about last. turns: how often an
            example replaced it. An answer for another picture comes too late.
    """

    folder: Path
    library: Library
    own: dict[str, Entry] = field(default_factory=dict)
    trained: dict[str, Entry] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    enabled: set[str] = field(default_factory=set)
    drawings: Runs = field(default_factory=Runs)
    grids: Runs = field(default_factory=Runs)
    strips: Runs = field(default_factory=Runs)
    depths: Runs = field(default_factory=Runs)
    pace: Pace = field(default_factory=Pace)
    history: History | None = None
    guided_by: tuple[str, ...] = ()
    pictures: dict[str, str | None] = field(default_factory=dict)
    asked_about: dict[str, str | None] = field(default_factory=dict)
    turns: Counter[str] = field(default_factory=Counter)
    _outputs: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self):
        self.enabled |= {entry.name for entry in self.entries().values() if entry.source == "shipped"}

    def entries(self) -> dict[str, Entry]:
        """All adapters by name."""
        trained = {entry.name: entry for entry in self.trained.values()}
        return {entry.name: entry for entry in self.library.entries()[0]} | trained | self.own

    def entries_for(self, task: str) -> dict[str, Entry]:
        """The adapters of a task by name."""
        return {name: entry for name, entry in self.entries().items() if entry.adapter.info.task == task}

    def entry(self, name: str) -> Entry:
        """The adapter called ``name``.

        Raises:
            InputError: there is none; the message suggests the nearest name.
        """
        entries = self.entries()
        if name not in entries:
            raise InputError(f"no adapter {name[:60]!r} here{nearest(name, entries, 'adapter')}")
        return entries[name]

    def add(self, entry: Entry) -> None:
        """Add an adapter, at weight 1 and enabled if it can take part in what is enabled now."""
        if len(self.own) >= MAX_OWN:
            raise InputError(f"{entry.path}: {MAX_OWN} adapters are open already; remove one first")
        self.own[entry.name] = entry
        info = entry.adapter.info
        others = [self.entries()[name].adapter.info for name in self.enabled if name in self.entries()]
        if not any(other.task == info.task for other in others):
            self.enabled.add(entry.name)

    def cancel(self) -> None:
        """Cancel whatever is being drawn."""
        for runs in (self.drawings, self.grids, self.strips, self.depths):
            runs.cancel()

    def free_name(self, wanted: str) -> str:
        """A name that no adapter has yet."""
        return unique_name(wanted, self.entries())

    def remove(self, name: str) -> None:
        """Forget an adapter that the user added."""
        if name not in self.own:
            raise InputError(f"{name}: only adapters that you added can be removed")
        del self.own[name]
        self.enabled.discard(name)

    def set(self, name: str, enabled: bool, weight: float) -> None:
        """Enable or disable an adapter, and give it a weight."""
        self.entry(name)
        if not abs(weight) <= WEIGHT_LIMIT:
            raise InputError(f"weight {weight} of {name}: must be from {-WEIGHT_LIMIT:g} to {WEIGHT_LIMIT:g}")
        self.weights[name] = float(weight)
        (self.enabled.add if enabled else self.enabled.discard)(name)

    def use(self, name: str) -> None:
        """Enable an adapter at weight 1, and no other of its task."""
        entry = self.entry(name)
        self.enabled -= set(self.entries_for(entry.adapter.info.task))
        self.set(name, True, 1.0)

    def follow_guidance(self, mix: Mix) -> bool:
        """Record the adapters that the page's guidance is set for; returns whether they have changed."""
        before, self.guided_by = self.guided_by, tuple(entry.name for entry, _ in mix.terms)
        return before != self.guided_by

    def set_strength(self, task: str, weight: float) -> None:
        """Give every enabled adapter of a task the same weight; without one, the first of the task is enabled.

        Raises:
            InputError: there is no adapter of the task.
        """
        entries = self.entries_for(task)
        names = [name for name in entries if name in self.enabled] or list(entries)[:1]
        if not names:
            raise InputError(f"no {task} adapter is open: add one first")
        for name in names:
            self.set(name, True, weight)

    def weight(self, name: str) -> float:
        return self.weights.get(name, 1.0)

    def mix(self, task: str) -> Mix:
        """The enabled adapters of a task with their weights."""
        entries = [e for e in self.entries_for(task).values() if e.name in self.enabled]
        return Mix.of([(entry, self.weight(entry.name)) for entry in entries], task)

    def alone(self, name: str) -> Mix:
        """One adapter at weight 1, enabled or not."""
        entry = self.entry(name)
        return Mix.of([(entry, 1.0)], entry.adapter.info.task)

    def output(self) -> Path:
        """A fresh folder for the files of one request; those of older requests are removed."""
        number = next(self._outputs)
        shutil.rmtree(self.folder / "out" / str(number - KEPT_OUTPUTS), ignore_errors=True)
        folder = self.folder / "out" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


class Sessions:
    """The sessions by id, in folders below ``root``. Beyond `MAX_SESSIONS`, the least recently used one is closed.

    Args:
        drawings: where all sessions keep their drawings; None: each keeps its own, and they go with it.
    """

    def __init__(self, library: Library, root: Path, drawings: Path | None = None):
        self.library, self.root = library, root
        self._history = History(drawings) if drawings else None
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, key: str | None) -> Session:
        """The session of an id, made when it is first asked for."""
        with self._lock:
            if key not in self._open:
                folder = Path(tempfile.mkdtemp(prefix="session-", dir=self.root))
                (folder / "adapters").mkdir()
                own = self._history or History(folder / "drawings", KEPT_DRAWINGS)
                self._open[key] = Session(folder, self.library, history=own)
                while len(self._open) > MAX_SESSIONS:
                    self._discard(self._open.popitem(last=False)[1])
            self._open.move_to_end(key)
            return self._open[key]

    def close(self, key: str | None) -> None:
        """Forget a session and its files."""
        with self._lock:
            if key in self._open:
                self._discard(self._open.pop(key))

    def cancel_all(self) -> None:
        """Cancel whatever is being drawn."""
        with self._lock:
            for session in self._open.values():
                session.cancel()

    @staticmethod
    def _discard(session: Session) -> None:
        shutil.rmtree(session.folder, ignore_errors=True)
