"""Drawing classes with a DiT: step by step with previews, base and adapted on the same noise, and grids of settings."""

import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from app.bases import Bases
from app.runs import State
from app.sessions import Session, Term, mark_of, mixed
from onelora_vision.adapters.bases import require_same_base
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.dit import DiTBase, class_ids
from onelora_vision.diffusion.sampling import decode, denoise
from onelora_vision.diffusion.settings import SAMPLERS, SamplingSettings
from onelora_vision.errors import InputError, nearest
from onelora_vision.inference.generation import trained_settings
from onelora_vision.plots.figures import saved_figure
from onelora_vision.plots.pictures import read_notes, save_sample, tile
from onelora_vision.storage.files import atomic_file

MAX_IMAGES = 64
MAX_CELLS = 36
MAX_SEED = 2**31 - 1
AXES = ("adapter weight", "guidance", "steps", "adapter", "seed")
PREVIEWS = 8  # of one drawing
BASE = "base"


@dataclass(frozen=True)
class Request:
    """What to draw.

    Attributes:
        classes: names; each is drawn ``num_images`` times, the k-th with the noise of ``seed + k``.
        base: name of the base, empty for the one that the enabled adapters were trained on.
        compare: draw what the base draws, too.
    """

    classes: tuple[str, ...]
    seed: int = 0
    num_images: int = 1
    sampler: str = "dpm++"
    steps: int = 20
    guidance: float = 2.5
    base: str = ""
    compare: bool = True

    def __post_init__(self):
        if not self.classes:
            raise InputError("choose at least one class to draw")
        if not 1 <= self.num_images * len(self.classes) <= MAX_IMAGES:
            raise InputError(f"{self.num_images * len(self.classes)} images: draw from 1 to {MAX_IMAGES} at a time")
        if not 0 <= self.seed <= MAX_SEED - self.num_images:
            raise InputError(f"seed {self.seed}: must be from 0 to {MAX_SEED - self.num_images}")
        if not 0 <= self.guidance <= 30:
            raise InputError(f"guidance {self.guidance}: must be from 0 to 30")
        if self.steps > 1000:
            raise InputError(f"{self.steps} steps: at most 1000")

    def seeds(self) -> list[int]:
        return [self.seed + number for _ in self.classes for number in range(self.num_images)]

    def names(self) -> list[str]:
        return [name for name in self.classes for _ in range(self.num_images)]


@dataclass
class Picture:
    """One drawn image, or a preview of it, as a file; and what it shows."""

    image: Path
    caption: str


@dataclass
class Drawing:
    """The state of a drawing: ``done`` of ``total`` steps, in words, and the pictures so far.

    Only a finished one has an archive; one that was cancelled or has failed has no pictures.
    """

    done: int = 0
    total: int = 0
    text: str = ""
    base: list[Picture] = field(default_factory=list)
    adapted: list[Picture] = field(default_factory=list)
    archive: Path | None = None
    state: State = State.DRAWING


class Drawer:
    """Draws for sessions on the shared bases."""

    def __init__(self, bases: Bases):
        self.bases = bases

    def classes(self, session: Session, base: str = "") -> list[str]:
        """The names that can be drawn with what is enabled."""
        info = _info(session.terms("generation"))
        return list(info.class_names or self._view(info, [], base).class_names)

    def draw(self, session: Session, request: Request, ticket: int = 0) -> Iterator[Drawing]:
        """Draw step by step; the last `Drawing` has every picture as a file and all of them in an archive.

        Args:
            ticket: from ``session.drawings``, where the drawing was announced before (0: it is announced now).

        Raises:
            InputError: what is asked for cannot be drawn; nothing was drawn then.
        """
        runs = session.drawings
        return runs.follow(ticket or runs.take_ticket(), self._draw(session, request), _ended)

    def _draw(self, session: Session, request: Request) -> Iterator[Drawing]:
        terms, folder = session.terms("generation"), session.output()
        info = _info(terms)
        settings = _settings_for(info, request)
        variants = {BASE: []} if request.compare or not terms else {}
        variants |= {"adapted": terms} if terms else {}
        state = Drawing(0, settings.steps * len(variants), "loading")
        yield state
        for part in variants.values():
            self._check(info, part, request)
        for number, (variant, part) in enumerate(variants.items()):
            view = self._view(info, part, request.base)
            for step, images in self._steps(view, request, settings):
                state = replace(state, done=number * settings.steps + step + 1)
                state.text = f"{variant}: step {step + 1} of {settings.steps}"
                if images is not None:
                    setattr(state, variant, _previews(folder / f"{variant}-{step}", images, request))
                yield state
            notes = _notes(request, settings, terms, variant)
            files = _save(folder, images, request, view, variant, notes)
            state = replace(state, **{variant: files})
        archive = _archive(folder / "images.zip", [p.image for p in [*state.base, *state.adapted]])
        yield replace(state, text="done", archive=archive, state=State.FINISHED)

    def grid(self, session: Session, request: Request, x: "Axis", y: "Axis", ticket: int = 0) -> Iterator[Drawing]:
        """Draw every combination of two settings into one picture, a cell at a time.

        Args and errors are those of `draw`; the ticket is from ``session.grids``.
        """
        runs = session.grids
        return runs.follow(ticket or runs.take_ticket(), self._grid(session, request, x, y), _ended)

    def _grid(self, session: Session, request: Request, x: "Axis", y: "Axis") -> Iterator[Drawing]:
        if x.name == y.name:
            raise InputError(f"both axes are {x.name!r}: choose two different ones")
        if not 1 <= len(x.values) * len(y.values) <= MAX_CELLS:
            raise InputError(f"{len(x.values) * len(y.values)} cells: a grid has from 1 to {MAX_CELLS}")
        folder, cells, total = session.output(), [], len(x.values) * len(y.values)
        plans = [_changed(session, request, {x.name: right, y.name: down}) for down in y.values for right in x.values]
        yield Drawing(0, total, "loading")
        for terms in {mark_of(terms): terms for terms, _ in plans}.values():
            self._check(_info(terms, session), terms, request)
        for number, (terms, changed) in enumerate(plans):
            sheet = _sheet(folder / f"preview-{number}.png", cells, x, y)
            state = Drawing(number, total, f"cell {number + 1} of {total}", adapted=sheet)
            yield state
            view = self._view(_info(terms, session), terms, request.base)
            settings = _settings_for(_info(terms, session), changed)
            for _, images in self._steps(view, changed, settings):  # noqa: B007 - the last ones
                yield state
            cells.append(tile(images, changed.num_images))
        terms = session.terms("generation")
        notes = _notes(request, _settings_for(_info(terms), request), terms, "grid")
        record = {**notes, "x": asdict(x), "y": asdict(y)}
        picture = folder / "grid.png"
        _draw_grid(picture, cells, x, y, record)
        shown = [Picture(picture, f"{y.name} by {x.name}")]
        yield Drawing(total, total, "done", adapted=shown, archive=picture, state=State.FINISHED)

    def _check(self, info: AdapterInfo, terms: list[Term], request: Request) -> None:
        """Refuse a mix that is none, that has another base, or that does not know the classes."""
        plain = self.bases.base(info, request.base)
        if (mix := mixed(terms, plain.model)) is not None:
            require_same_base(mix.info, mix.path, plain)
        class_ids(request.names(), info.class_names or plain.class_names or [])

    def _view(self, info: AdapterInfo, terms: list[Term], base: str) -> DiTBase:
        plain = self.bases.base(info, base)
        return self.bases.view(info, mixed(terms, plain.model), mark_of(terms), base)

    def _steps(
        self, view: DiTBase, request: Request, settings: SamplingSettings
    ) -> Iterator[tuple[int, torch.Tensor | None]]:
        """Number of the step and, at the last and now and then, images (N, 3, H, W)."""
        labels = class_ids(request.names(), view.class_names)
        every = max(1, -(-settings.steps // PREVIEWS))
        steps = denoise(view.model, dict(view.scheduler.config), labels, request.seeds(), settings)
        for step in steps:
            is_last = step.number == settings.steps - 1
            shown = step.x if is_last else step.clean if step.number % every == every - 1 else None
            yield step.number, None if shown is None else decode(view.vae, shown)


def _ended(state: State) -> Drawing:
    return Drawing(text=state.value, state=state)


@dataclass(frozen=True)
class Axis:
    """One direction of a grid: a setting and the values that it takes."""

    name: str
    values: tuple


def parse_axis(session: Session, name: str, text: str) -> Axis:
    """The values of an axis, written with commas between them, such as ``0, 0.5, 1`` or ``1, 2, 3``.

    Raises:
        InputError: an unknown axis, or a value that the setting cannot have.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if name == "adapter":
        known = [BASE, *(e.name for e in session.entries().values() if e.adapter.info.task == "generation")]
        for part in parts:
            if part not in known:
                raise InputError(f"adapter axis: no adapter {part[:60]!r}{nearest(part, known, 'adapter')}")
        return Axis(name, tuple(parts or known))
    if name not in AXES:
        raise InputError(f"axis {name[:40]!r}{nearest(name, AXES, 'axis')}")
    if not parts:
        raise InputError(f"{name}: write its values with commas between them, such as 1, 2, 3")
    kind = int if name in ("steps", "seed") else float
    try:
        return Axis(name, tuple(kind(part) for part in parts))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{name}: {text[:60]!r} must be {what} with commas between them") from None


def _changed(session: Session, request: Request, values: dict) -> tuple[list[Term], Request]:
    """The mix and the request of one cell."""
    terms = session.terms("generation")
    if "adapter" in values:
        name = values["adapter"]
        terms = [] if name == BASE else [Term(session.entry(name), session.weight(name))]
    if "adapter weight" in values:
        if len(terms) > 1:
            names = ", ".join(term.entry.name for term in terms)
            raise InputError(f"adapter weight: {names} are enabled; enable one, or take the adapter as the other axis")
        if not abs(values["adapter weight"]) <= 2:
            raise InputError(f"adapter weight {values['adapter weight']:g}: must be from -2 to 2")
        terms = [replace(term, weight=values["adapter weight"]) for term in terms]
    fields = {key: values[key] for key in ("guidance", "steps", "seed") if key in values}
    return terms, replace(request, **fields)


def _info(terms: list[Term], session: Session | None = None) -> AdapterInfo:
    """What the mix is for; a mix of nothing keeps the classes of what is enabled, if there is a session."""
    if not terms and session is not None:
        terms = session.terms("generation")
    if not terms:
        return AdapterInfo("generation", "", "")
    return terms[0].entry.adapter.info


def _settings_of(info: AdapterInfo) -> SamplingSettings:
    try:
        return trained_settings(info)
    except (TypeError, ValueError):  # a file may say anything
        return SamplingSettings()


def _settings_for(info: AdapterInfo, request: Request) -> SamplingSettings:
    return replace(_settings_of(info), sampler=request.sampler, steps=request.steps, guidance_scale=request.guidance)


def _record(request: Request, settings: SamplingSettings) -> dict:
    fields = {"classes": list(request.classes), "seed": request.seed, "num_images": request.num_images}
    return {**fields, "base": request.base, "compare": request.compare, **asdict(settings)}


def _notes(request: Request, settings: SamplingSettings, terms: list[Term], variant: str) -> dict:
    adapters = [{"name": t.entry.name, "digest": t.entry.digest, "weight": t.weight} for t in terms]
    return {**_record(request, settings), "adapters": adapters, "adapted": variant != BASE}


def _previews(folder: Path, images: torch.Tensor, request: Request) -> list[Picture]:
    pictures = []
    for number, (image, caption) in enumerate(zip(images, _captions(request))):
        pictures.append(Picture(folder / f"{number}.png", caption))
        save_sample(pictures[-1].image, image, {})
    return pictures


def _captions(request: Request) -> list[str]:
    return [f"{name} · {seed}" for name, seed in zip(request.names(), request.seeds())]


def _save(
    folder: Path, images: torch.Tensor, request: Request, view: DiTBase, variant: str, notes: dict
) -> list[Picture]:
    """Write each image as a PNG that says how it was drawn."""
    pictures, labels = [], class_ids(request.names(), view.class_names)
    captions = _captions(request)
    for image, label, name, seed, caption in zip(images, labels, request.names(), request.seeds(), captions):
        path = folder / f"{label:04d}-{seed:05d}-{variant}.png"
        text = {"seed": str(seed), "class": name, "label": str(label), "settings": json.dumps(notes)}
        save_sample(path, image, text)
        pictures.append(Picture(path, caption))
    return pictures


def _archive(path: Path, files: Sequence[Path]) -> Path:
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in files:
            archive.write(file, file.name)
    return path


def _sheet(path: Path, cells: list[torch.Tensor], x: Axis, y: Axis) -> list[Picture]:
    """The finished cells of a grid as a preview."""
    if not cells:
        return []
    blanks = [torch.ones_like(cells[0])] * (len(x.values) * len(y.values) - len(cells))
    save_sample(path, tile(torch.stack([*cells, *blanks]), len(x.values)), {})
    return [Picture(path, f"{y.name} by {x.name}")]


def _draw_grid(path: Path, cells: list[torch.Tensor], x: Axis, y: Axis, record: dict) -> None:
    """One PNG of all cells with the values at their rows and columns; its text says how it was drawn."""
    height, width = cells[0].shape[1:]
    side = max(96, width) / 96  # inches at 96 dpi
    size = (side * len(x.values) + 1.2, side * height / width * len(y.values) + 0.9)
    with saved_figure(path, size, dpi=96, metadata={"onelora.settings": json.dumps(record)}) as figure:
        panels = figure.subplots(len(y.values), len(x.values), squeeze=False)
        for axes, cell in zip(panels.flat, cells):
            axes.imshow(cell.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        for axes, value in zip(panels[0], x.values):
            axes.set_title(_shown(value), fontsize=9)
        for axes, value in zip(panels[:, 0], y.values):
            axes.set_ylabel(_shown(value), fontsize=9)
        figure.suptitle(x.name, fontsize=10)
        figure.supylabel(y.name, fontsize=10)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else f"{value:g}"


@dataclass(frozen=True)
class Restored:
    """The settings of a PNG: the request, its adapters as (name, weight), and what could not be restored."""

    request: Request
    adapters: list[tuple[str, float]]
    missing: list[str]


def restore(session: Session, path: Path) -> Restored:
    """Read the settings of a PNG back and enable its adapters, at their weights, in ``session``.

    Raises:
        InputError: no PNG of this app or of ``onelora sample``, or settings that are none.
    """
    notes = read_notes(path)
    try:
        record = json.loads(notes["settings"])
        request = _request_of(record, notes)
        named = [(str(a["name"]), str(a.get("digest", "")), float(a["weight"])) for a in _adapters_of(record)]
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path.name}: the settings in this PNG are damaged") from error
    entries, found, missing = session.entries(), [], []
    for name, digest, weight in named:
        same = [entry.name for entry in entries.values() if entry.digest == digest]
        if not same and not digest and name in entries:
            same = [name]
        if not same or not abs(weight) <= 2:
            missing.append(re.sub(r"[^\w\-. ]", "", name)[:60])
            continue
        found.append((same[0], weight))
    for entry in entries.values():
        if entry.adapter.info.task == "generation":
            session.enabled.discard(entry.name)
    for name, weight in found:
        session.set(name, True, weight)
    return Restored(request, found, missing)


def _request_of(record: dict, notes: dict) -> Request:
    classes = record.get("classes") or [notes["class"]]
    sampler = str(record["sampler"])
    if sampler not in SAMPLERS:
        raise InputError(f"sampler {sampler[:40]!r}{nearest(sampler, SAMPLERS, 'sampler')}")
    return Request(
        classes=tuple(str(name) for name in classes),
        seed=int(record["seed"] if "seed" in record else notes["seed"]),
        num_images=int(record.get("num_images", 1)),
        sampler=sampler,
        steps=int(record["steps"]),
        guidance=float(record["guidance_scale"]),
        base=str(record.get("base", "")),
        compare=bool(record.get("compare", True)),
    )


def _adapters_of(record: dict) -> list[dict]:
    """The adapters of a picture of this app, or the one of a picture of ``onelora sample``."""
    if "adapters" in record:
        return record["adapters"]
    return [{"name": Path(record["adapter"]).stem, "weight": 1.0}] if record.get("adapted") else []
