"""The ``onelora`` commands that draw the same pictures as the studio did."""

import shlex

from .drawing import Request
from .library import Entry
from .mix import Mix

MIX = "mix.safetensors"


def command_of(mix: Mix, request: Request, with_places: bool) -> str:
    """``onelora sample``, after ``onelora blend`` if there is something to blend.

    Args:
        with_places: name adapters by their places on this machine; otherwise by their names alone.
    """
    terms = [(entry, weight) for entry, weight in mix.terms if weight] or list(mix.terms)
    if not terms:
        return "# the base alone: enable an adapter of it to get a command"
    lines, adapter = [], _place(terms[0][0], with_places)
    if len(terms) > 1 or terms[0][1] not in (0.0, 1.0):
        parts = [f"{_place(entry, with_places)}:{weight:g}" for entry, weight in terms]
        lines.append(["onelora", "blend", *parts, "-o", MIX])
        adapter = MIX
    sample = ["onelora", "sample", adapter, "-o", "images", "--classes", _classes(request)]
    sample += ["--num_images", str(request.num_images), "--seed", str(request.seed), "--steps", str(request.steps)]
    sample += ["--sampler", request.sampler, "--guidance_scale", f"{request.guidance:g}"]
    sample += ["--guidance_base" if request.guidance_base else "--no_guidance_base"]
    sample += ["--base", request.base] if request.base else []
    sample += ["--without_adapter"] if not any(weight for _, weight in terms) else []
    return "\n".join(shlex.join(line) for line in [*lines, sample])


def _classes(request: Request) -> str:
    """Names with commas in them by their first synonym."""
    return ",".join(name.partition(",")[0].strip() for name in request.classes)


def _place(entry: Entry, with_places: bool) -> str:
    if with_places and entry.source != "upload":
        return str(entry.path)
    return entry.name if entry.source == "hub" else f"{entry.name}.safetensors"
