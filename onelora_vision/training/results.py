"""The ``results.json`` of finished runs, as other commands read it."""

import json
from pathlib import Path

from onelora_vision.errors import InputError

PHASES = ("started", "baseline", "trained", "evaluated", "drawn", "complete")
RESULTS = "results.json"


def read_results(path: str | Path) -> dict:
    """The ``results.json`` of a finished run, by its path or its folder.

    Raises:
        InputError: there is none, or the run has not been evaluated.
    """
    file = Path(path) / RESULTS if Path(path).is_dir() else Path(path)
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        results["protocol"], results["metrics"]["after"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not the results.json of a run ({type(error).__name__}: {error})") from None
    phase = results.get("phase", "complete")
    if phase in PHASES[: PHASES.index("evaluated")] or not results["metrics"]["after"]:
        raise InputError(f"{file}: this run was interrupted (phase {phase!r}); resume it first")
    return results
