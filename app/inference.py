"""All that the app does, without a widget: sessions, their adapters, and the requests that they make.

Texts go in, plain values and files come out; bad input ends in `InputError`. `app.ui` puts widgets around it.
"""

import atexit
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from app import classify, depth
from app.bases import EMBEDDED, Bases
from app.drawing import Drawer
from app.hub import fetch_adapter, fetch_base
from app.library import Entry, Library, read_entry, receive
from app.sessions import Session, Sessions, mixed
from onelora_vision.adapters.files import write_adapter
from onelora_vision.adapters.inspection import inspect, plot_norms
from onelora_vision.errors import InputError


class Studio:
    """The app's state: adapters and bases shared by all, and one session per user.

    Args:
        adapters: folder of adapters that every user sees besides the shipped ones.
        bases: pipeline and model folders, by name, that may be chosen as bases.
        max_upload: bytes that one upload may have.
        root: folder for the sessions' files (default: a temporary one, removed at exit).
    """

    def __init__(
        self,
        adapters: str | Path | None = None,
        bases: Mapping[str, Path] | None = None,
        max_upload: int = 64 << 20,
        root: str | Path | None = None,
        device: str | None = None,
    ):
        self.max_upload = max_upload
        self.root = Path(root or tempfile.mkdtemp(prefix="onelora-app-"))
        if root is None:
            atexit.register(shutil.rmtree, self.root, ignore_errors=True)
        self.library = Library(adapters)
        self.bases = Bases(bases or {}, fetch_base, device)
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
            rows.append({**entry.facts(), **state})
        return rows

    def problems(self) -> list[str]:
        """Files of the adapters folder that are no adapters, each with its reason."""
        return self.library.entries()[1]

    def upload(self, session: Session, files: Sequence[str | Path]) -> list[str]:
        """Open uploaded adapters; returns their names. Files are whole and sound, or none is taken.

        Raises:
            InputError: what was wrong with which file.
        """
        names = []
        received = receive([Path(file) for file in files], session.folder / "adapters", self.max_upload)
        try:
            entries = [self._read(session, path, _plain_stem(path), "upload") for path in received]
        except InputError:
            for path in received:
                (shutil.rmtree if path.is_dir() else Path.unlink)(path)
            raise
        for entry in entries:
            session.add(entry)
            names.append(entry.name)
        return names

    def add_from_hub(self, session: Session, repo_id: str) -> str:
        """Open an adapter of the hub; returns its name."""
        folder = fetch_adapter(repo_id.strip(), self.max_upload)
        entry = self._read(session, folder, repo_id.rsplit("/", 1)[-1], "hub")
        session.add(entry)
        return entry.name

    @staticmethod
    def _read(session: Session, path: Path, wanted: str, source: str) -> Entry:
        entry = read_entry(path, session.free_name(wanted), source)
        same = [other.name for other in session.entries().values() if other.digest == entry.digest]
        if same:
            raise InputError(f"{wanted}: is open already, as {same[0]}")
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
        if not facts["rows"]:
            return facts, None
        plot = session.output() / "norms.png"
        plot_norms(facts["rows"], plot, entry.name)
        return facts, plot


def _plain_stem(path: Path) -> str:
    """The name that an uploaded file came with: `receive` puts a number before it."""
    stem = (path.name if path.is_dir() else path.stem).partition("-")[2]
    return stem if stem != "adapter_model" else "adapter"


__all__ = ["EMBEDDED", "Studio"]
