"""The runs of a sweep, and what completed runs show.

Every arm (a method, optionally with its own flags) is tried at several learning rates with the first seed, on the
validation split. At its best rate it is then trained with all seeds and evaluated on the test split, which is not used
for any choice.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from onelora_vision.errors import InputError, nearest
from onelora_vision.metrics.direction import METRICS, higher_is_better, main_metric
from onelora_vision.storage.files import write_json
from onelora_vision.sweep.arms import Arm, arm_names, parse_arms
from onelora_vision.training.results import RESULTS, checked_run

SETTINGS, RUNS, FAILED = "sweep.json", "runs", "failed.json"
VALIDATION, TEST = "validation", "test"


class Script(NamedTuple):
    """A training script: the class of its settings, and the flag that selects the split for evaluating a run."""

    config: str
    split_flag: str


#: The scripts, by their names in ``onelora train``.
SCRIPTS = {
    "classification": Script("ClassificationConfig", "eval_split"),
    "depth": Script("DepthConfig", "eval_split"),
    "dit": Script("DiTConfig", "fid_split"),
    "language": Script("LanguageConfig", "eval_split"),
}
#: Start of a method's search: rates that worked well on the built-in jobs (docs/study.md).
FIRST_RATES = {
    "onelora": 3e-3, "onelora_norms": 3e-3, "miss": 3e-3, "mora1": 3e-3, "full": 1e-3, "osf": 1e-3, "bitfit": 3e-2,
    "beft": 3e-2, "difffit": 3e-2, "dora": 3e-2, "vera": 3e-2, "vera128": 3e-2, "pvera": 3e-2, "mora6": 3e-2,
}  # fmt: skip
_USUAL_RATE = 1e-2  # for other methods
_LADDER = [float(f"{digit}e{exponent}") for exponent in range(-7, 3) for digit in (1, 3)]
_MOST_RATES = 9  # per method, then the search stops


@dataclass(frozen=True)
class Run:
    """One training run of a sweep."""

    arm: Arm
    rate: float
    seed: int
    split: str

    @property
    def name(self) -> str:
        """Its folder, inside the folder of the sweep's runs."""
        return f"{self.arm.folder}/lr-{self.rate:g}/{self.split}-seed-{self.seed}"


@dataclass
class Sweep:
    """A sweep in its folder, including methods and seeds from earlier commands, which stay in its tables.

    Attributes:
        task: its name in ``onelora train``.
        methods: names of arms, see `arms.Arm.parse`; ``arms`` has them by name.
        rates: the same for all arms; None: each arm's own, extended until the best is not at the edge.
        metric: to rank arms by; None: the task's main metric.
        flags: of the script, for all runs. joins_validation: the final runs also train on the validation split.
        more_metrics: further columns of the table. sections: names of arms by the title of their own table.
        earlier: names of arms from earlier commands that are not in this one: nothing is run for them.

    Raises:
        InputError: methods, rates, seeds or metrics are invalid; or the folder contains a sweep with another task or
            other flags, whose runs are not comparable.
    """

    folder: Path
    task: str
    methods: Sequence[str]
    seeds: Sequence[int]
    rates: Sequence[float] | None = None
    metric: str | None = None
    flags: Sequence[str] = ()
    joins_validation: bool = False
    more_metrics: Sequence[str] = ()
    sections: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _results: dict[Run, dict] = field(default_factory=dict)

    def __post_init__(self):
        if not self.methods:
            raise InputError("no method is given to sweep")
        for flag, name in (("metric", self.metric), *(("more_metrics", name) for name in self.more_metrics)):
            if name is not None and higher_is_better(name) is None:
                raise InputError(f"--{flag} {name}: no such metric{nearest(name, METRICS, 'metric')}")
        for what, values in (("seed", self.seeds), ("learning rate", self.rates or ())):
            if len(set(values)) < len(values):
                raise InputError(f"a {what} is given twice: {', '.join(map(str, values))}")
        if any(not (rate > 0 and math.isfinite(rate)) for rate in self.rates or ()):
            raise InputError(f"learning rates must be greater than 0: {', '.join(f'{r:g}' for r in self.rates)}")
        if any(not 0 <= seed < 2**31 for seed in self.seeds):
            raise InputError(f"seeds must be from 0 to 2^31 - 1: {', '.join(map(str, self.seeds))}")
        before = settings_before(self.folder, self._same())
        names = list(arm_names(self.methods))
        self.arms = parse_arms([*(name for name in before.get("methods", []) if name not in names), *names])
        self.methods, self.earlier = list(self.arms), set(self.arms) - set(names)
        self.seeds = list(dict.fromkeys([*before.get("seeds", []), *self.seeds]))

    def _same(self) -> dict[str, Any]:
        """The settings that all commands on a folder must share."""
        return {"task": self.task, "flags": sorted(self.flags)}

    def open(self) -> None:
        """Record the settings in the folder.

        Raises:
            InputError: the folder contains files that do not belong to a sweep.
        """
        claim(self.folder, self._same(), {"methods": self.methods, "seeds": list(self.seeds)})

    def place(self, run: Run) -> Path:
        """The run's ``--output_dir``."""
        return self.folder / RUNS / run.name

    def arguments(self, run: Run) -> list[str]:
        """The script's command line for a run, which continues an earlier, interrupted start of it."""
        rate = [f"--learning_rate={run.rate:g}"]
        if run.arm.method == "head":  # the scripts train it with the head's rate
            rate.append(f"--head_learning_rate={run.rate:g}")
        own = {
            **dict(run.arm.flags),
            "method": run.arm.method,
            "seed": run.seed,
            SCRIPTS[self.task].split_flag: run.split,
            "output_dir": self.place(run),
        }
        if run.split == TEST and self.joins_validation:
            own["train_on_validation"] = "true"
        own |= {"resume_from_checkpoint": "latest", "report_to": "none"}
        return [*self.flags, *rate, *(f"--{name}={value}" for name, value in own.items())]

    def result(self, run: Run) -> dict | None:
        """The results of a completed run, ``{"failed": reason}`` if its numbers became invalid, otherwise None."""
        if run not in self._results:
            found = self._read(run)
            if found is None:
                return None
            self._results[run] = found
        return self._results[run]

    def _read(self, run: Run) -> dict | None:
        place = self.place(run)
        for name in (FAILED, RESULTS):
            try:
                found = json.loads((place / name).read_text(encoding="utf-8"))
                if name == FAILED:
                    return {"failed": str(found["failed"])}
                checked_run(found)
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if found.get("phase", "complete") == "complete":
                return found
        return None

    def metric_of(self, result: dict) -> str:
        """The name of the metric that is compared.

        Raises:
            InputError: it is not measured, or another of the table's columns is not.
        """
        after = result["metrics"]["after"]
        name = self.metric or main_metric(result["task"], after)
        if name is None:
            raise InputError(
                "these runs measure nothing that methods could be ranked by; see the script's flags of evaluation"
            )
        for flag, wanted in (("metric", name), *(("more_metrics", more) for more in self.more_metrics)):
            if wanted not in after or higher_is_better(wanted) is None:
                known = ", ".join(name for name in after if higher_is_better(name) is not None)
                raise InputError(f"--{flag} {wanted}: is not measured by these runs; they have {known or 'none'}")
        return name

    def figure(self, run: Run) -> float | None:
        """The value that a run is ranked by; None for a run that failed or measured no number."""
        result = self.result(run)
        if result is None or "failed" in result:
            return None
        return result["metrics"]["after"][self.metric_of(result)]

    # ------------------------------------------------------------------------------------------------- the plan

    def rates_of(self, name: str) -> list[float]:
        """The rates to try for an arm, given the runs completed so far; in increasing order.

        Includes rates tried by earlier commands.
        """
        arm = self.arms[name]
        if arm.rate_of is not None:
            return []
        if name in self.earlier:
            return self._tried(arm)
        rates = self._searched(arm) if self.rates is None else self.rates
        return sorted({*rates, *self._tried(arm)})

    def _tried(self, arm: Arm) -> list[float]:
        """The rates of an arm's completed trials, in increasing order."""
        rates = []
        for place in (self.folder / RUNS / arm.folder).glob("lr-*"):
            with contextlib.suppress(ValueError):
                rates.append(float(place.name.removeprefix("lr-")))
        return sorted(rate for rate in rates if self.result(self._trial(arm, rate)) is not None)

    def _searched(self, arm: Arm) -> list[float]:
        """The arm's own rates: three, extended until the best is not at the edge."""
        middle = _LADDER.index(FIRST_RATES.get(arm.method, _USUAL_RATE))
        low, high = middle - 1, middle + 1
        while high - low < _MOST_RATES - 1:
            tried = [self._trial(arm, rate) for rate in _LADDER[low : high + 1]]
            if any(self.result(run) is None for run in tried):
                break
            best = self._best(tried)
            if best is None or best == tried[0]:  # if all failed, the rates were too high
                low -= 1
            elif best == tried[-1]:
                high += 1
            else:
                break
            if low < 0 or high >= len(_LADDER):
                break
        return _LADDER[max(low, 0) : high + 1]

    def _trial(self, arm: Arm, rate: float) -> Run:
        return Run(arm, rate, self.seeds[0], VALIDATION)

    def trials(self, name: str) -> list[Run]:
        """The runs that choose an arm's rate; none for an arm that uses another's."""
        return [self._trial(self.arms[name], rate) for rate in self.rates_of(name)]

    def _best(self, runs: Sequence[Run]) -> Run | None:
        figures = {run: figure for run in runs if (figure := self.figure(run)) is not None and math.isfinite(figure)}
        if not figures:
            return None
        is_higher = higher_is_better(self.metric_of(self.result(next(iter(figures)))))
        return (max if is_higher else min)(figures, key=figures.get)

    def best_trial(self, name: str) -> Run | None:
        """The best trial, of the arm itself or of the one whose rate it uses.

        None while a trial is missing, or if none gave a number.
        """
        trials = self.trials(self.arms[name].rate_of or name)
        return None if any(self.result(run) is None for run in trials) else self._best(trials)

    def is_inside(self, name: str) -> bool:
        """Whether rates on both sides of the best one were tried."""
        best, rates = self.best_trial(name), self.rates_of(self.arms[name].rate_of or name)
        return best is not None and rates[0] < best.rate < rates[-1]

    def finals(self, name: str) -> list[Run]:
        """The runs that are evaluated on the test split.

        None before the rate is known; for an arm from an earlier command, only the completed ones.
        """
        best = self.best_trial(name)
        runs = [Run(self.arms[name], best.rate, seed, TEST) for seed in self.seeds] if best else []
        return [run for run in runs if self.result(run) is not None] if name in self.earlier else runs

    def runs(self) -> Iterator[Run]:
        """All runs known so far, in the order to do them."""
        for name in self.arms:
            yield from self.trials(name)
        for name in self.arms:
            yield from self.finals(name)

    def missing(self) -> list[Run]:
        """The runs that are not complete."""
        return [run for run in self.runs() if self.result(run) is None]


def settings_before(folder: Path, same: dict[str, Any]) -> dict[str, Any]:
    """The settings recorded by earlier commands in a sweep's folder; empty if there were none.

    Raises:
        InputError: a setting in ``same`` was different, so the runs are not comparable.
    """
    path = folder / SETTINGS
    if not path.exists():
        return {}
    before = read_settings(path)
    for name, value in same.items():
        if (was := before.get(name)) != value:
            said = [" ".join(found) if isinstance(found, list) else found for found in (was, value)]
            raise InputError(
                f"{folder}: the sweep there has other {name} ({said[0] or 'none'}; now {said[1] or 'none'}): methods, rates "
                "and seeds may change, for the rest choose another --output_dir"
            )
    return before


def claim(folder: Path, same: dict[str, Any], more: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Record settings in a sweep's folder, which is created if missing: ``same`` for all commands on it, and ``more``.

    Raises:
        InputError: the folder contains a sweep with other settings, or files that do not belong to a sweep.
    """
    if not settings_before(folder, same) and folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and not a sweep's; choose another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, {**same, **more, "written_by": "onelora_vision"})


def read_settings(path: Path) -> dict[str, Any]:
    """The settings written by `claim`.

    Raises:
        InputError: the file does not belong to a sweep.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["written_by"] == "onelora_vision":
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path}: not a sweep's; choose another --output_dir")
