"""Settings from a picture: the request that a PNG was drawn for, and the adapters that took part."""

import re
from dataclasses import dataclass
from pathlib import Path

from onelora_vision.errors import InputError
from onelora_vision.inference.record import SampleRecord, UsedAdapter
from onelora_vision.plots.pictures import read_notes

from .drawing import TASK, Request
from .sessions import WEIGHT_LIMIT, Session


@dataclass(frozen=True)
class Restored:
    """The settings of a PNG: the request, its adapters as (name, weight), and names that could not be restored."""

    request: Request
    adapters: list[tuple[str, float]]
    missing: list[str]


def restore(session: Session, path: Path) -> Restored:
    """Read the settings of a PNG and enable its adapters, at their weights, in ``session``.

    Raises:
        InputError: see `read_settings`.
    """
    found = read_settings(session, path)
    session.enabled -= set(session.entries_for(TASK))
    for name, weight in found.adapters:
        session.set(name, True, weight)
    return found


def read_settings(session: Session, path: Path) -> Restored:
    """The settings of a PNG, with the names that its adapters have in ``session``.

    Raises:
        InputError: not a PNG of this app or of ``onelora sample``, or its settings are damaged.
    """
    record = SampleRecord.from_notes(read_notes(path), path.name)
    request = _request_of(record, path.name)
    found, missing = [], []
    for used in record.adapters:
        name = _find(session, used)
        if name is None or not abs(used.weight) <= WEIGHT_LIMIT:
            missing.append(re.sub(r"[^\w\-. ]", "", Path(used.name).name)[:60])
        else:
            found.append((name, used.weight))
    return Restored(request, found, missing)


def _find(session: Session, used: UsedAdapter) -> str | None:
    """The session's name for an adapter: by its values, or by its own name if the picture has no fingerprint."""
    entries = session.entries()
    if used.fingerprint:
        return next((name for name, entry in entries.items() if entry.fingerprint == used.fingerprint), None)
    return next((name for name in (used.name, Path(used.name).stem) if name in entries), None)


def _request_of(record: SampleRecord, where: str) -> Request:
    """The request that a sample was drawn for; `onelora sample` draws each class and seed for itself."""
    given, settings = record.request, record.settings
    classes = given.get("classes") or [record.class_name]
    try:
        if None in classes:
            raise ValueError("no class")
        return Request(
            classes=tuple(str(name) for name in classes),
            seed=int(given.get("seed", record.seed)),
            num_images=int(given.get("num_images", 1)),
            sampler=settings.sampler,
            steps=settings.steps,
            guidance=settings.guidance_scale,
            base=str(given.get("base", "")),
            compare=bool(given.get("compare", True)),
            guidance_base=settings.guidance_base,
        )
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: the settings in this PNG are damaged") from error
