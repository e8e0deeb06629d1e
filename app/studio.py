"""Everything that the app does, without widgets: sessions, their adapters, drawings, depth, classes and trainings.

It takes texts and returns plain values and files; bad input raises `InputError`. `app.ui` adds the widgets.
"""

import atexit
import functools
import hashlib
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from onelora_vision import embedded
from onelora_vision.adapters.container import WEIGHTS_FILE
from onelora_vision.adapters.file import write_adapter
from onelora_vision.adapters.hub import fetch_adapter
from onelora_vision.adapters.summary import inspect, plot_norms
from onelora_vision.errors import InputError
from onelora_vision.storage.files import atomic_file

from . import cards, classify, depth
from .bases import Bases
from .command import command_of
from .drawing import TASK, Drawer
from .examples import Examples
from .grid import GridDrawer
from .history import Kept
from .hub import KNOWN_BASES, fetch_base
from .library import Entry, Library, parcels, read_entry, receive
from .mix import Mix
from .names import without_paths
from .real import RealImages, real_images
from .restore import read_settings
from .sessions import Session, Sessions
from .sheets import write_pair
from .trainings.run import Phase
from .trainings.runs import Trainings


class Studio:
    """The app's state: adapters and bases shared by all, and one session per user.

    Args:
        adapters: folder of adapters that every user sees, in addition to the shipped ones.
        bases: pipeline and model folders, by name, that may be chosen as bases.
        max_upload: most bytes of an upload or of an adapter from the hub.
        hub_bases: hub ids and timm names that may be downloaded as bases, in addition to `app.hub.KNOWN_BASES`.
        max_base: most bytes of a base from the hub.
        root: folder for the files of sessions (default: a temporary one, removed at exit).
        training: settings of `app.trainings.runs.Trainings` (default: nothing can be trained).
        drawings: folder that all sessions keep their drawings in (default: each its own, until it is closed).
    """

    def __init__(
        self,
        adapters: str | Path | None = None,
        bases: Mapping[str, Path] | None = None,
        max_upload: int = 64 << 20,
        root: str | Path | None = None,
        device: str | None = None,
        hub_bases: Collection[str] = (),
        max_base: int = 8 << 30,
        training: Mapping | None = None,
        drawings: str | Path | None = None,
    ):
        self.max_upload = max_upload
        self.root = Path(root or tempfile.mkdtemp(prefix="onelora-app-"))
        if root is None:
            atexit.register(shutil.rmtree, self.root, ignore_errors=True)
        self.library = Library(adapters)
        self.bases = Bases(
            bases or {}, functools.partial(fetch_base, limit=max_base), {*KNOWN_BASES, *hub_bases}, device
        )
        self.sessions = Sessions(self.library, self.root, Path(drawings) if drawings else None)
        self.shows_places = drawings is not None  # whether the one who sits at this machine is the user
        self.drawer, self.grid_drawer = Drawer(self.bases), GridDrawer(self.bases)
        self.depth, self.classifier = depth.DepthMapper(self.bases), classify.Classifier(self.bases)
        examples = self.root / "examples"
        self.depth_example = depth.write_example(examples / "street.png")
        self.digit_examples = classify.write_examples(examples)
        is_off = {"folder": self.root / "trainings", "refusal": "training is off"}
        self.trainings = Trainings(source=self.bases.source, **(training or is_off))
        answering = self.drawer, self.depth, self.classifier
        self.examples = Examples(examples, self.library, *answering, self.depth_example, self.digit_examples[0])

    def session(self, key: str | None) -> Session:
        return self.sessions.get(key)

    def cancel_all(self) -> None:
        """Cancel whatever is being drawn for anybody; trainings go on."""
        self.examples.cancel()
        self.sessions.cancel_all()

    def base_names(self, task: str) -> list[str]:
        """Bases that can be chosen by name: those of the package for a task, and the app's folders."""
        return [*embedded.names_of(task), *self.bases.folders]

    def public(self, value):
        """A text, or the texts in lists and dicts, without paths of this server."""
        private = [folder for folder in (self.root, self.library.folder, self.trainings.folder) if folder]
        return without_paths(value, dict.fromkeys(private, "") | self.bases.names())

    # Adapters

    def rows(self, session: Session) -> list[dict]:
        """The session's adapters with their state, for a list."""
        rows = []
        for name, entry in session.entries().items():
            state = {
                "enabled": name in session.enabled,
                "weight": session.weight(name),
                "removable": name in session.own,
            }
            facts = entry.facts()
            rows.append({**facts, "base": self.public(facts["base"]), **state})
        return rows

    def thumbnail(self, session: Session, name: str) -> str | None:
        """A small picture of what an adapter does, as a data URL, if its folder has one."""
        return cards.thumbnail(session.entry(name).path)

    def problems(self) -> list[str]:
        """Files in the adapters folder that cannot be used, each with its reason."""
        return self.public(self.library.entries()[1])

    def upload(self, session: Session, files: Sequence[str | Path]) -> tuple[list[str], list[str]]:
        """Open the uploaded adapters that are valid.

        Returns their names, and for each refused file a message that starts with its name.
        """
        names, refused = [], []
        for parcel in parcels(files):
            try:
                path = receive(parcel, session.folder / "adapters", self.max_upload)
                names.append(self._add_upload(session, path))
            except InputError as error:
                refused.append(self.public(str(error)))
        return names, refused

    def _add_upload(self, session: Session, path: Path) -> str:
        """Open a received adapter; its folder is removed if that fails."""
        try:
            wanted = path.stem if path.is_file() else path.name
            entry = self._read(session, path, "adapter" if wanted == Path(WEIGHTS_FILE).stem else wanted, "upload")
            session.add(entry)
        except BaseException:
            shutil.rmtree(path.parent)
            raise
        return entry.name

    def add_from_hub(self, session: Session, repo_id: str) -> str:
        """Open an adapter of the hub; returns its name."""
        folder = fetch_adapter(repo_id.strip(), self.max_upload, "; the app's operator can set --max_upload_mb")
        try:
            entry = self._read(session, folder, repo_id.rsplit("/", 1)[-1], "hub")
            session.add(entry)
        except InputError as error:
            raise InputError(str(error).replace(str(folder), repo_id.strip())) from error
        return entry.name

    @staticmethod
    def _read(session: Session, path: Path, wanted: str, source: str) -> Entry:
        entry = read_entry(path, session.free_name(wanted), source)
        same = [other.name for other in session.entries().values() if other.fingerprint == entry.fingerprint]
        if same:
            raise InputError(f"{path}: is open already, as {same[0]}")
        return entry

    def adopt(self, session: Session, secret: str) -> list[str]:
        """Open the adapters of the user's finished trainings that are not open yet; returns their names."""
        added = []
        for run in reversed(self.trainings.of(secret)):  # the oldest first, so that each has the same name every time
            if run.name in session.trained or run.phase() is not Phase.FINISHED:
                continue
            try:
                entry = read_entry(run.adapter, session.free_name(run.title), "training")
            except InputError:  # it was changed or deleted since
                continue
            session.trained[run.name] = entry
            added.append(entry.name)
        return added

    def shown(self, session: Session, path: Path) -> Path:
        """A copy of a file in the session's folder, which the page is allowed to show."""
        key = hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()[:16]
        copy = session.folder / "shown" / f"{key}{path.suffix}"
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            with atomic_file(copy) as temporary:
                shutil.copyfile(path, temporary)
        return copy

    def pair(self, session: Session, kept: Kept) -> tuple[Path, Path] | None:
        """Sheets of a kept drawing's base and adapted pictures, if it has both."""
        base, adapted = ([kept.folder / name for name in part] for part in kept.parts())
        return write_pair(session.output(), base, adapted)

    def real_images(self, session: Session, classes: Sequence[str]) -> RealImages | None:
        """Real images of the classes, to compare the session's mix with."""
        return real_images(session.mix(TASK), classes, session.folder / "real")

    def command(self, session: Session, kept: Kept) -> str:
        """The commands that draw what was drawn, if its adapters are open."""
        found = read_settings(session, kept.first)
        if found.missing:
            return f"# add the adapter first: {', '.join(found.missing)}"
        mix = Mix.of([(session.entry(name), weight) for name, weight in found.adapters], TASK)
        return command_of(mix, found.request, self.shows_places)

    def save_mix(self, session: Session, task: str) -> Path:
        """Write the weighted sum of a task's enabled adapters as one adapter file.

        Raises:
            InputError: nothing is enabled, or the adapters have no sum.
        """
        mix = session.mix(task)
        if not mix.fingerprint:
            raise InputError(f"no {task} adapter is enabled with a weight: there is nothing to save")
        adapter = mix.adapter(self.bases.base(mix.info))
        path = session.output() / f"{task}-mix.safetensors"
        return write_adapter(adapter.config, adapter.tensors, adapter.info, path)

    def facts(self, session: Session, name: str) -> dict:
        """What an adapter's file says, and the norms of its layers as ``rows``."""
        entry = session.entry(name)
        facts = {**inspect(entry.path), "file_bytes": entry.file_bytes}
        facts.update({key: self.public(facts[key]) for key in ("file", "base", "extra", "versions")})
        return facts

    def details(self, session: Session, name: str) -> tuple[dict, Path | None]:
        """`facts`, and a plot of the norms per layer (None if no layer is adapted)."""
        facts = self.facts(session, name)
        if not facts["rows"]:
            return facts, None
        plot = session.output() / "norms.png"
        plot_norms(facts["rows"], plot, session.entry(name).name)
        return facts, plot
