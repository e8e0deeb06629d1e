"""X/Y grids: one request drawn for every combination of the values of two settings."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from onelora_vision.diffusion.settings import AUTO
from onelora_vision.errors import InputError, nearest
from onelora_vision.inference.record import SampleRecord
from onelora_vision.plots.figures import saved_figure
from onelora_vision.plots.pictures import save_sample, tile
from onelora_vision.storage.outputs import NOTE_PREFIX

from .bases import Bases
from .drawing import (
    ADAPTED,
    BASE,
    TASK,
    Drawing,
    Picture,
    Request,
    classes_of,
    draw_steps,
    ended,
    own_guidance,
    record_of,
    require_guidable,
    sampling_settings,
    view_for,
)
from .mix import Mix
from .runs import State
from .sessions import WEIGHT_LIMIT, Session
from .strips import STRENGTHS

MAX_CELLS = 36
MAX_STRIP_CLASSES = 4
AXES = ("adapter weight", "guidance", "guidance from", "steps", "adapter", "seed")
SOURCES = (ADAPTED, BASE)  # of "guidance from"


@dataclass(frozen=True)
class Axis:
    """One axis of a grid: a setting and its values."""

    name: str
    values: tuple


def parse_axis(session: Session, name: str, text: str) -> Axis:
    """The values of an axis, written with commas between them, such as ``0, 0.5, 1`` or ``1, 2, 3``.

    Raises:
        InputError: an unknown axis, or a value that the setting cannot have.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if name == "adapter":
        known = [BASE, *session.entries_for(TASK)]
        for part in parts:
            if part not in known:
                raise InputError(f"adapter axis: no adapter {part[:60]!r}{nearest(part, known, 'adapter')}")
        return Axis(name, tuple(parts or known))
    if name == "guidance from":
        for part in parts:
            if part not in SOURCES:
                raise InputError(f"guidance from: {part[:60]!r} is unknown{nearest(part, SOURCES, 'source')}")
        return Axis(name, tuple(parts or SOURCES))
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


class GridDrawer:
    """Draws grids for sessions on the shared bases."""

    def __init__(self, bases: Bases):
        self.bases = bases

    def draw(self, session: Session, request: Request, x: Axis, y: Axis, ticket: int = 0) -> Iterator[Drawing]:
        """Draw every combination of two settings into one picture, a cell at a time.

        Args:
            ticket: from ``session.grids``, if the drawing was announced before.

        Raises:
            InputError: a cell cannot be drawn; this is raised before anything is drawn.
        """
        runs = session.grids
        return runs.follow(ticket or runs.take_ticket(), self._draw(session, request, x, y, session.mix(TASK)), ended)

    def strip_request(self, session: Session, name: str, request: Request) -> Request:
        """A request for a strip of one adapter: an image per class, with the guidance that it was evaluated with.

        It keeps the classes that the adapter knows, or takes the adapter's first classes if it knows none of them.
        """
        mix = session.alone(name)
        known = classes_of(self.bases, mix)
        classes = [one for one in request.classes if one in known] or known[:MAX_STRIP_CLASSES]
        guidance, from_base = own_guidance(mix)
        own = {"base": "", "sampler": AUTO, "guidance": guidance, "guidance_base": from_base}
        return replace(request, classes=tuple(classes), num_images=1, **own)

    def strip(self, session: Session, name: str, request: Request, ticket: int) -> Iterator[Drawing]:
        """Draw one adapter at each of `app.strips.STRENGTHS`.

        Args:
            request: see `strip_request`. ticket: from ``session.strips``.

        Raises:
            InputError: the adapter has no other weights.
        """
        axes = Axis("adapter weight", STRENGTHS), Axis("seed", (request.seed,))
        return session.strips.follow(ticket, self._draw(session, request, *axes, session.alone(name)), ended)

    def _draw(self, session: Session, request: Request, x: Axis, y: Axis, mixed: Mix) -> Iterator[Drawing]:
        if x.name == y.name:
            raise InputError(f"both axes are {x.name!r}: choose two different ones")
        total = len(x.values) * len(y.values)
        if not 1 <= total <= MAX_CELLS:
            raise InputError(f"{total} cells: a grid has from 1 to {MAX_CELLS}")
        folder, images = session.output(), []
        pairs = [{x.name: right, y.name: down} for down in y.values for right in x.values]
        cells = [_cell(session, request, values, mixed) for values in pairs]
        yield Drawing(0, total, "loading")
        for mix, changed in cells:
            require_guidable(mix, sampling_settings(mix.info, changed))
        for mix in {mix.fingerprint: mix for mix, _ in cells}.values():
            objective = view_for(self.bases, mix, request).objective.name
        for number, (mix, changed) in enumerate(cells):
            sheet = _save_preview(folder / f"preview-{number}.png", images, x, y)
            state = Drawing(number, total, f"cell {number + 1} of {total}", adapted=sheet)
            yield state
            view = view_for(self.bases, mix, request)
            settings = sampling_settings(mix.info, changed).resolved(objective)
            for _, drawn in draw_steps(self.bases, mix, view, changed, settings):  # noqa: B007 - the last ones
                yield state
            images.append(tile(drawn, changed.num_images))
        picture = folder / "grid.png"
        settings = sampling_settings(mixed.info, request).resolved(objective)
        record = record_of(request, settings, mixed, adapted=True)
        axes = {"x": asdict(x), "y": asdict(y)}
        _save_grid(picture, images, x, y, replace(record, request={**record.request, **axes}))
        shown = [Picture(picture, f"{y.name} by {x.name}")]
        yield Drawing(total, total, f"Drawn: {total} cells.", adapted=shown, archive=picture, state=State.FINISHED)


def _cell(session: Session, request: Request, values: dict, mix: Mix) -> tuple[Mix, Request]:
    """The mix and the request of one cell of a grid that is drawn with ``mix``."""
    if "adapter" in values:
        name = values["adapter"]
        term = None if name == BASE else (session.entry(name), session.weight(name))
        mix = Mix.of([term], TASK) if term else mix.without_adapters()
    if "adapter weight" in values:
        weight = values["adapter weight"]
        if len(mix.terms) > 1:
            names = ", ".join(entry.name for entry, _ in mix.terms)
            raise InputError(f"adapter weight: {names} are enabled; enable one, or take the adapter as the other axis")
        if not abs(weight) <= WEIGHT_LIMIT:
            raise InputError(f"adapter weight {weight:g}: must be from {-WEIGHT_LIMIT:g} to {WEIGHT_LIMIT:g}")
        mix = mix.at_weight(weight)
    fields = {key: values[key] for key in ("guidance", "steps", "seed") if key in values}
    if "guidance from" in values:
        fields["guidance_base"] = values["guidance from"] == BASE
    return mix, replace(request, **fields)


def _save_preview(path: Path, images: list[torch.Tensor], x: Axis, y: Axis) -> list[Picture]:
    """The finished cells of a grid, tiled, if there are any."""
    if not images:
        return []
    blanks = [torch.ones_like(images[0])] * (len(x.values) * len(y.values) - len(images))
    save_sample(path, tile(torch.stack([*images, *blanks]), len(x.values)), {})
    return [Picture(path, f"{y.name} by {x.name}")]


def _save_grid(path: Path, images: list[torch.Tensor], x: Axis, y: Axis, record: SampleRecord) -> None:
    """Write one PNG of all cells, with the values next to their rows and columns, that says how it was drawn."""
    height, width = images[0].shape[1:]
    side = max(96, width) / 96  # inches at 96 dpi
    size = (side * len(x.values) + 1.2, side * height / width * len(y.values) + 0.9)
    notes = {f"{NOTE_PREFIX}{key}": text for key, text in record.to_notes().items()}
    with saved_figure(path, size, dpi=96, metadata=notes) as figure:
        panels = figure.subplots(len(y.values), len(x.values), squeeze=False)
        for axes, image in zip(panels.flat, images):
            axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
        for axes, value in zip(panels[0], x.values):
            axes.set_title(_text_of(value), fontsize=9)
        for axes, value in zip(panels[:, 0], y.values):
            axes.set_ylabel(_text_of(value), fontsize=9)
        figure.suptitle(x.name, fontsize=10)
        figure.supylabel(y.name, fontsize=10)


def _text_of(value: object) -> str:
    return value if isinstance(value, str) else f"{value:g}"
