"""Drawing classes with a DiT, step by step with previews, by the base and by a mix on the same noise."""

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.dit import DiTBase, class_ids
from onelora_vision.diffusion.sampling import decode, denoise
from onelora_vision.diffusion.settings import AUTO, SAMPLERS, SamplingSettings
from onelora_vision.errors import InputError
from onelora_vision.inference.generation import check_guidance, trained_settings
from onelora_vision.inference.record import SampleRecord, UsedAdapter
from onelora_vision.plots.pictures import save_sample
from onelora_vision.storage.files import atomic_file

from .bases import Bases
from .mix import Mix
from .runs import State
from .sessions import Session
from .sheets import write_pair

TASK = DiTBase.task
MAX_IMAGES = 64
MAX_SEED = 2**31 - 1
PREVIEWS = 8  # of one drawing
BASE, ADAPTED = "base", "adapted"  # the variants of a drawing


@dataclass(frozen=True)
class Request:
    """What to draw.

    Attributes:
        classes: names; each is drawn ``num_images`` times, the k-th with the noise of ``seed + k``.
        sampler: one of the base's own, or ``auto`` for the first of them.
        base: name of the base; empty for the one that the enabled adapters were trained on.
        compare: draw with the base alone too.
        guidance_base: guide away from the frozen base instead of the adapted model's null class.
    """

    classes: tuple[str, ...]
    seed: int = 0
    num_images: int = 1
    sampler: str = AUTO
    steps: int = 20
    guidance: float = 2.5
    base: str = ""
    compare: bool = True
    guidance_base: bool = False

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

    def captions(self) -> list[str]:
        return [f"{name} · {seed}" for name, seed in zip(self.names(), self.seeds())]


@dataclass
class Picture:
    """The file of a drawn image or of a preview, and its caption."""

    image: Path
    caption: str


@dataclass
class Drawing:
    """The state of a drawing: ``done`` of ``total`` steps, a text for people, and the pictures so far.

    Only a finished drawing has an archive. One that was cancelled or failed has no pictures.

    Attributes:
        pair: sheets of both parts of a finished drawing, to lay one over the other.
    """

    done: int = 0
    total: int = 0
    text: str = ""
    base: list[Picture] = field(default_factory=list)
    adapted: list[Picture] = field(default_factory=list)
    archive: Path | None = None
    pair: tuple[Path, Path] | None = None
    state: State = State.DRAWING


class Drawer:
    """Draws for sessions on the shared bases."""

    def __init__(self, bases: Bases):
        self.bases = bases

    def classes(self, session: Session, base: str = "") -> list[str]:
        """The names that can be drawn with the enabled adapters."""
        return classes_of(self.bases, session.mix(TASK), base)

    def samplers(self, session: Session, base: str = "") -> list[str]:
        """The samplers of the base that is drawn with: ``auto``, and those of its objective."""
        mix = session.mix(TASK)
        if mix.terms and not base:  # an adapter's file says what its base predicts; none of old said anything else
            said = str(mix.info.extra.get("objective", ""))
            objective = next((name for name in SAMPLERS if said.startswith(name)), "epsilon")
        else:
            objective = self.bases.base(mix.without_adapters().info, base).objective.name
        return [AUTO, *SAMPLERS[objective]]

    def draw(self, session: Session, request: Request, ticket: int = 0) -> Iterator[Drawing]:
        """Draw step by step; the last `Drawing` has every picture as a file and all of them in an archive.

        Args:
            ticket: from ``session.drawings``, if the drawing was announced before.

        Raises:
            InputError: the request cannot be drawn; this is raised before anything is drawn.
        """
        runs = session.drawings
        return runs.follow(ticket or runs.take_ticket(), self._draw(session, request), ended)

    def _draw(self, session: Session, request: Request) -> Iterator[Drawing]:
        mix, folder = session.mix(TASK), session.output()
        settings = sampling_settings(mix.info, request)
        settings.require_effect("Guidance")
        require_guidable(mix, settings)
        variants = {BASE: mix.without_adapters()} if request.compare or not mix.terms else {}
        variants |= {ADAPTED: mix} if mix.terms else {}
        state = Drawing(0, settings.steps * len(variants), "loading")
        yield state
        views = {name: view_for(self.bases, variant, request) for name, variant in variants.items()}
        settings = settings.resolved(next(iter(views.values())).objective.name)
        with session.pace.timed(mix):
            for state in self._variants(mix, views, request, settings, folder, state):  # noqa: B020
                if state.state is State.FINISHED and session.history is not None:
                    drawn, beside = (state.adapted, state.base) if state.adapted else (state.base, [])
                    files = ([picture.image for picture in part] for part in (drawn, beside))
                    session.history.add(state.text, *files)
                yield state

    def _variants(
        self,
        mix: Mix,
        views: dict[str, DiTBase],
        request: Request,
        settings: SamplingSettings,
        folder: Path,
        state: Drawing,
    ) -> Iterator[Drawing]:
        """Draw with one view after the other, and put all pictures into an archive."""
        for number, (variant, view) in enumerate(views.items()):
            for step, images in draw_steps(self.bases, mix, view, request, settings):
                state = replace(state, done=number * settings.steps + step + 1)
                state.text = f"{variant}: step {step + 1} of {settings.steps}"
                if images is not None:
                    setattr(state, variant, _save_previews(folder / f"{variant}-{step}", images, request))
                yield state
            record = record_of(request, settings, mix, adapted=variant == ADAPTED)
            state = replace(state, **{variant: _save_samples(folder, variant, images, view, request, record)})
        parts = [[picture.image for picture in part] for part in (state.base, state.adapted)]
        archive, pair = _write_archive(folder / "images.zip", [*parts[0], *parts[1]]), write_pair(folder, *parts)
        text = f"Drawn: {len(request.names())} images, {settings.steps} steps, {str(mix) or 'the base alone'}."
        yield replace(state, text=text, archive=archive, pair=pair, state=State.FINISHED)


def ended(state: State) -> Drawing:
    """The final state of a drawing that did not finish."""
    return Drawing(text=state.value, state=state)


def classes_of(bases: Bases, mix: Mix, base: str = "") -> list[str]:
    """The names that can be drawn with a mix."""
    return list(mix.info.class_names or bases.view(mix.without_adapters(), base).class_names)


def view_for(bases: Bases, mix: Mix, request: Request) -> DiTBase:
    """The view that draws ``request`` with ``mix``.

    Raises:
        InputError: the mix has no sum, belongs to another base, or does not know the classes.
    """
    view = bases.view(mix, request.base)
    class_ids(request.names(), view.class_names)
    return view


def sampling_settings(info: AdapterInfo, request: Request | None = None) -> SamplingSettings:
    """The settings of a request. What it does not set is taken from the adapter's evaluation."""
    try:
        settings = trained_settings(info)
    except (TypeError, ValueError):  # a file may say anything
        settings = SamplingSettings()
    if request is None:
        return settings
    settings = replace(settings, sampler=request.sampler, steps=request.steps, guidance_scale=request.guidance)
    return replace(settings, guidance_base=request.guidance_base)


def own_guidance(mix: Mix) -> tuple[float, bool]:
    """The guidance that the mix's first adapter was evaluated with: its scale, and whether the base guides."""
    defaults = Request(("-",))
    if not mix.terms:
        return defaults.guidance, defaults.guidance_base
    settings = sampling_settings(mix.terms[0][0].adapter.info)
    return settings.guidance_scale, settings.guidance_base


def require_guidable(mix: Mix, settings: SamplingSettings) -> None:
    """Raise if an adapter of the mix was distilled to need no guidance, and guidance is asked for.

    Raises:
        InputError: see `check_guidance`.
    """
    for entry, weight in mix.terms:
        if weight:
            check_guidance(entry.adapter.info, settings, "Guidance")


def draw_steps(
    bases: Bases, mix: Mix, view: DiTBase, request: Request, settings: SamplingSettings
) -> Iterator[tuple[int, torch.Tensor | None]]:
    """Yield the number of each step with images (N, 3, H, W) of the last step and of some before it, else None.

    Guidance from the base asks a view of the base alone: switching the mix's view off would change what others draw.
    """
    labels = class_ids(request.names(), view.class_names)
    base = bases.view(mix.without_adapters(), request.base).model if settings.uses_base else None
    every = max(1, -(-settings.steps // PREVIEWS))
    for step in denoise(view.model, view.schedule, labels, request.seeds(), settings, base):
        is_last = step.number == settings.steps - 1
        shown = step.x if is_last else step.clean if step.number % every == every - 1 else None
        yield step.number, None if shown is None else decode(view.vae, shown)


def record_of(request: Request, settings: SamplingSettings, mix: Mix, adapted: bool) -> SampleRecord:
    """The settings that all PNGs of a request share."""
    fields = {"classes": list(request.classes), "seed": request.seed, "num_images": request.num_images}
    fields |= {"base": request.base, "compare": request.compare}
    adapters = tuple(UsedAdapter(entry.name, weight, entry.fingerprint) for entry, weight in mix.terms)
    return SampleRecord(settings, adapters, adapted, request=fields)


def _save_previews(folder: Path, images: torch.Tensor, request: Request) -> list[Picture]:
    pictures = []
    for number, (image, caption) in enumerate(zip(images, request.captions())):
        pictures.append(Picture(folder / f"{number}.png", caption))
        save_sample(pictures[-1].image, image, {})
    return pictures


def _save_samples(
    folder: Path, variant: str, images: torch.Tensor, view: DiTBase, request: Request, record: SampleRecord
) -> list[Picture]:
    """Write each image as a PNG that says how it was drawn."""
    pictures, labels = [], class_ids(request.names(), view.class_names)
    for image, label, name, seed, caption in zip(images, labels, request.names(), request.seeds(), request.captions()):
        pictures.append(Picture(folder / f"{label:04d}-{seed:05d}-{variant}.png", caption))
        sample = replace(record, class_name=name, label=label, seed=seed)
        save_sample(pictures[-1].image, image, sample.to_notes())
    return pictures


def _write_archive(path: Path, files: Sequence[Path]) -> Path:
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in files:
            archive.write(file, file.name)
    return path
