"""Loading the base of an adapter: the one named in its file, fitted as the adapter needs it."""

from pathlib import Path

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import Base
from onelora_vision.backbones.table import TASKS, base_class
from onelora_vision.errors import InputError, nearest, one_line


def load_base(info: AdapterInfo, base: str | Path | None = None, *, as_trained: bool = False) -> Base:
    """Load the base of an adapter in fp32, frozen, in eval mode, with the adapter's classes and settings.

    Args:
        info: the header of the adapter's file.
        base: where to load the base from, if not from the place in the header.
        as_trained: also apply `Base.use_settings`, such as weights in bf16.

    Raises:
        InputError: the header does not name a known task, or the base does not exist.
    """
    place = str(base or info.base)
    if not place:
        raise InputError("the adapter's file does not name its base: give it with --base")
    if info.task not in TASKS:
        hint = nearest(info.task, TASKS, "task") if info.task else f"; known tasks: {', '.join(TASKS)}"
        raise InputError(f"the adapter's file names task {info.task!r}, so its base {place} cannot be loaded{hint}")
    family = base_class(info.task, place)
    found = family.load(
        place, **_settings(info, (*family.load_settings, *(family.use_settings if as_trained else ())))
    )
    found.fit(info.class_names, **_settings(info, family.fit_settings))
    found.model.eval().requires_grad_(False)
    return found


def _settings(info: AdapterInfo, names: tuple[str, ...]) -> dict:
    return {name: info.extra[name] for name in names if info.extra.get(name) not in (None, False)}


def require_same_base(info: AdapterInfo, path: str | Path, base: Base) -> None:
    """Raise an `InputError` if an adapter was not trained on this base, or on the base as it is used now.

    Args:
        info, path: header and place of the adapter's file.
        base: the base that the adapter is about to be put on.
    """
    expected, found = info.base_fingerprint, base.fingerprint()
    if expected and found != expected:
        raise InputError(
            f"{path}: trained on another base than {base.source} (fingerprint {expected}, found {found}); the file "
            f"names {info.base!r}"
        )
    if reason := other_objective(info, base):
        raise InputError(f"{path}: {reason}")
    before, now = info.extra.get("preprocessing"), base.preprocessing
    if not (isinstance(before, dict) and now):
        return
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key]:
            raise InputError(
                f"{path}: trained on pictures with {one_line(key, 40)} {one_line(before[key], 100)}, but "
                f"{base.source} makes them with {one_line(now[key], 100)}; use the base with the preprocessing it had"
            )


def other_objective(info: AdapterInfo, base: Base) -> str:
    """Explain how an adapter's objective differs from that of ``base``; empty if they agree, or if one is unknown.

    The weights of DiT, SiT and REPA have the same names and shapes, so only the scheduler distinguishes them.
    """
    trained, found = info.extra.get("objective"), base.objective
    if not trained or found is None or trained == str(found):
        return ""
    return f"trained to predict {one_line(trained, 60)}, but {base.source or 'the base'} predicts {found}"
