"""Depth of pictures by the base and by the enabled adapters: of one, of many, at several strengths, as points."""

import hashlib
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from onelora_vision.backbones.depth import DepthBase
from onelora_vision.data.images import read_image
from onelora_vision.data.synthetic.scenes import SceneFrames
from onelora_vision.errors import InputError
from onelora_vision.inference.depth import estimate_depth
from onelora_vision.storage.files import atomic_file

from .bases import Bases
from .depth_maps import DepthMaps, Estimate, Look, draw_maps, draw_strip
from .drawing import Picture
from .library import unique_name
from .mix import Mix
from .pictures import readable
from .points import to_points, write_glb
from .runs import State
from .sessions import Session
from .strips import at_strengths

TASK = DepthBase.task
MAX_SIDE = 1536  # pixels of a picture that is taken as it is
MAX_PICTURES = 32
ANGLE = 60  # degrees of the view that points are put into space with at first


@dataclass
class DepthBatch:
    """The state of the depth of many pictures: ``done`` of ``total``, their maps so far, and in the end an archive.

    Attributes:
        refused: messages about pictures that cannot be read.
    """

    done: int = 0
    total: int = 0
    pictures: list[Picture] = field(default_factory=list)
    archive: Path | None = None
    refused: list[str] = field(default_factory=list)
    state: State = State.DRAWING


class DepthMapper:
    """Estimates depth for sessions on the shared bases."""

    def __init__(self, bases: Bases):
        self.bases = bases

    def estimate(self, session: Session, picture: Path | None, base: str = "", look: Look | None = None) -> DepthMaps:
        """The depth of a picture by the base and by the enabled depth adapters.

        Raises:
            InputError: no picture, or adapters that have no sum.
        """
        image = _read(picture)
        mix, folder, last = session.mix(TASK), session.output(), _last(session, picture)
        views = self._views(mix, base)
        with session.pace.timed(mix):
            estimate = _estimate(views, image, mix)
            estimate.save(last)
            return draw_maps(folder, estimate, look or Look())

    def draw_again(self, session: Session, picture: Path | None, look: Look) -> DepthMaps:
        """The session's last estimate in other colours. If there is none, ``picture`` is estimated first."""
        if not _last(session, picture).is_file():
            return self.estimate(session, picture, look=look)
        return draw_maps(session.output(), Estimate.load(_last(session, picture)), look)

    def points(self, session: Session, picture: Path | None, angle: float) -> Path:
        """The session's last estimate, or a first one of ``picture``, as a .glb file of points.

        Args:
            angle: the width of the camera's view in degrees, which a picture does not say.

        Raises:
            InputError: no picture, depth without scale, or an impossible angle.
        """
        if not _last(session, picture).is_file():
            self.estimate(session, picture)
        estimate = Estimate.load(_last(session, picture))
        if not estimate.in_metres:
            raise InputError("this base estimates depth without scale, and points need metres; take a metric one")
        places, colors = to_points(estimate.image, estimate.best, angle)
        return write_glb(session.output() / "points.glb", places, colors)

    def strip(self, session: Session, name: str, picture: Path | None, look: Look) -> Path:
        """One picture of the depth with one adapter at each of `app.strips.STRENGTHS`.

        Raises:
            InputError: no picture, or an adapter that has no other weights.
        """
        image, mixes = _read(picture), at_strengths(session.alone(name))
        views = [self.bases.view(mix) for _, mix in mixes]
        estimates = [(title, _estimate([view], image, mix)) for (title, mix), view in zip(mixes, views)]
        return draw_strip(session.output() / "strip.png", estimates, look)

    def estimate_many(
        self, session: Session, pictures: Sequence[Path], look: Look, ticket: int = 0
    ) -> Iterator[DepthBatch]:
        """The depth of pictures one after the other; the last `DepthBatch` has all maps in an archive.

        Args:
            ticket: from ``session.depths``, if it was announced before.

        Raises:
            InputError: no pictures, too many, or none that can be read; this is raised before anything is estimated.
        """
        runs = session.depths
        steps = self._many(session, pictures, look)
        return runs.follow(ticket or runs.take_ticket(), steps, lambda state: DepthBatch(state=state))

    def _many(self, session: Session, pictures: Sequence[Path], look: Look) -> Iterator[DepthBatch]:
        found, refused = readable(pictures, MAX_PICTURES, _read)
        mix, folder = session.mix(TASK), session.folder / "depths"  # other answers meanwhile do not clear it away
        shutil.rmtree(folder, ignore_errors=True)
        views, state, names = self._views(mix, ""), DepthBatch(0, len(found), refused=refused), []
        with atomic_file(folder / "depth.zip") as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for number, (picture, image) in enumerate(found):
                names.append(unique_name(picture.stem, names))
                yield state
                maps = draw_maps(folder / str(number), _estimate(views, image, mix), look)
                files = {"base": maps.base, "adapted": maps.adapted, "depth": maps.millimetres}
                for kind, file in files.items():
                    if file is not None:
                        archive.write(file, f"{names[-1]}_{kind}.png")
                shown = [*state.pictures, Picture(maps.adapted or maps.base, names[-1])]
                state = replace(state, done=number + 1, pictures=shown)
        yield replace(state, archive=folder / "depth.zip", state=State.FINISHED)

    def _views(self, mix: Mix, base: str) -> list[DepthBase]:
        """The base, and the base with the adapters if there are any. Both are opened before the first is used."""
        variants = [mix.without_adapters(), mix] if mix.terms else [mix]
        return [self.bases.view(variant, base) for variant in variants]


def _last(session: Session, picture: Path | None) -> Path:
    """The session's last estimate, if it is of this picture; others are deleted."""
    newest = session.folder / f"depth-{hashlib.sha256(str(picture).encode()).hexdigest()[:16]}.npz"
    for file in session.folder.glob("depth-*.npz"):
        if file != newest:
            file.unlink(missing_ok=True)
    return newest


def write_example(path: Path) -> Path:
    """A rendered street, 192 x 192, that no training has seen."""
    frame = SceneFrames("streets", "test", 12, 192, 192)[11]
    with atomic_file(path) as temporary:
        Image.fromarray(frame.image).save(temporary, format="png")
    return path


def _read(picture: Path | None) -> Image.Image:
    if picture is None:
        raise InputError("choose a picture first, or take the example")
    image = read_image(picture)
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


def _estimate(views: Sequence[DepthBase], image: Image.Image, mix: Mix) -> Estimate:
    maps = [estimate_depth(view, image, mix.info.extra.get("resolution")) for view in views]
    return Estimate(np.asarray(image.convert("RGB")), maps[0], maps[1] if len(maps) > 1 else None, views[0].is_metric)
