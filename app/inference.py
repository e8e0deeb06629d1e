"""All that the app does, without a widget: sessions, their adapters, and the requests that they make.

Texts go in, plain values and files come out; bad input ends in `InputError`. `app.ui` puts widgets around it.
"""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from app import classify, depth
from app.bases import Bases
from app.drawing import Drawer
from app.hub import KNOWN_BASES, fetch_adapter, fetch_base
from app.library import Entry, Library, parcels, read_entry, receive
from app.names import without_paths
from app.sessions import Session, Sessions, mixed
from onelora_vision.adapters.container import WEIGHTS_FILE
from onelora_vision.adapters.file import write_adapter
from onelora_vision.adapters.summary import inspect, plot_norms
from onelora_vision.errors import InputError


class Studio:
    """The app's state: adapters and bases shared by all, and one session per user.

    Args:
        adapters: folder of adapters that every user sees besides the shipped ones.
        bases: pipeline and model folders, by name, that may be chosen as bases.
        max_upload: bytes that one upload, or one adapter from the hub, may have.
        hub_bases: hub ids and timm names that may be downloaded as bases besides `app.hub.KNOWN_BASES`.
        max_base: bytes that one base from the hub may have.
        root: folder for the sessions' files (default: a temporary one, removed at exit).
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
    ):
        self.max_upload = max_upload
        self.root = Path(root or tempfile.mkdtemp(prefix="onelora-app-"))
        if root is None:
            atexit.register(shutil.rmtree, self.root, ignore_errors=True)
        self.library = Library(adapters)
        self.bases = Bases(
            bases or {}, functools.partial(fetch_base, limit=max_base), {*KNOWN_BASES, *hub_bases}, device
        )
        self.sessions = Sessions(self.library, self.root)
        self.drawer, self.depth = Drawer(self.bases), depth.DepthMapper(self.bases)
        self.classifier = classify.Classifier(self.bases)
        examples = self.root / "examples"
        self.depth_example = depth.write_example(examples / "street.png")
        self.digit_examples = classify.write_examples(examples)

    def session(self, key: str | None) -> Session:
        return self.sessions.get(key)

    def base_names(self) -> list[str]:
        """Bases that can be chosen by name."""
        return list(self.bases.folders)

    def public(self, value):
        """A text, or the texts in lists and dicts, as users may see it: without paths of this server."""
        private = [folder for folder in (self.root, self.library.folder) if folder]
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

    def problems(self) -> list[str]:
        """Files of the adapters folder that are no adapters, each with its reason."""
        return self.public(self.library.entries()[1])

    def upload(self, session: Session, files: Sequence[str | Path]) -> tuple[list[str], list[str]]:
        """Open uploaded adapters, each that is whole and sound.

        Returns their names, and a line for each file that was refused, which starts with the file's name.
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
        folder = fetch_adapter(repo_id.strip(), self.max_upload)
        try:
            entry = self._read(session, folder, repo_id.rsplit("/", 1)[-1], "hub")
            session.add(entry)
        except InputError as error:
            raise InputError(str(error).replace(str(folder), repo_id.strip())) from error
        return entry.name

    @staticmethod
    def _read(session: Session, path: Path, wanted: str, source: str) -> Entry:
        entry = read_entry(path, session.free_name(wanted), source)
        same = [other.name for other in session.entries().values() if other.digest == entry.digest]
        if same:
            raise InputError(f"{path}: is open already, as {same[0]}")
        return entry

    def save_mix(self, session: Session, task: str) -> Path:
        """Write the weighted sum of a task's enabled adapters as one adapter file.

        Raises:
            InputError: nothing is enabled, or there is no sum.
        """
        terms = session.terms(task)
        if not any(term.weight for term in terms):
            raise InputError(f"no {task} adapter is enabled with a weight: there is nothing to save")
        info = terms[0].entry.adapter.info
        mix = mixed(terms, self.bases.base(info).model)
        return write_adapter(mix.config, mix.tensors, mix.info, session.output() / f"{task}-mix.safetensors")

    def details(self, session: Session, name: str) -> tuple[dict, Path | None]:
        """Everything that an adapter's file says, and a plot of its norms per layer (None where no layer is adapted)."""
        entry = session.entry(name)
        facts = {**inspect(entry.path), "file_bytes": entry.file_bytes}
        facts.update({key: self.public(facts[key]) for key in ("file", "base", "extra", "versions")})
        if not facts["rows"]:
            return facts, None
        plot = session.output() / "norms.png"
        plot_norms(facts["rows"], plot, entry.name)
        return facts, plot
