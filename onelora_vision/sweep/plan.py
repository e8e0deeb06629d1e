"""Which runs a sweep consists of, and what those that are done say.

Every arm (a method, perhaps with flags of its own) is tried at several learning rates, with the first seed, on the
validation split; at its best rate it is then trained with all seeds and judged on the test split, which has chosen nothing.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from onelora_vision.errors import InputError
from onelora_vision.metrics.direction import higher_is_better, main_metric
from onelora_vision.storage.files import write_json
from onelora_vision.sweep.arms import Arm, parse_arms
from onelora_vision.training.results import RESULTS, checked_run

SETTINGS, RUNS, FAILED = "sweep.json", "runs", "failed.json"
VALIDATION, TEST = "validation", "test"


class Script(NamedTuple):
    """A training script: the class of its settings, and the flag that says which split judges a run."""

    config: str
    split_flag: str


#: The scripts, as ``onelora train`` calls them.
SCRIPTS = {
    "classification": Script("ClassificationConfig", "eval_split"),
    "depth": Script("DepthConfig", "eval_split"),
    "dit": Script("DiTConfig", "fid_split"),
    "language": Script("LanguageConfig", "eval_split"),
}
#: Where a method's search begins: rates that were good on the built-in jobs (docs/study.md).
FIRST_RATES = {
    "onelora": 3e-3, "onelora_norms": 3e-3, "miss": 3e-3, "mora1": 3e-3, "full": 1e-3, "osf": 1e-3, "bitfit": 3e-2,
    "beft": 3e-2, "difffit": 3e-2, "dora": 3e-2, "vera": 3e-2, "vera128": 3e-2, "pvera": 3e-2, "mora6": 3e-2,
}  # fmt: skip
_USUAL_RATE = 1e-2  # of the others
_LADDER = [float(f"{digit}e{exponent}") for exponent in range(-7, 3) for digit in (1, 3)]
_MOST_RATES = 9  # of one method, after which the search stops


@dataclass(frozen=True)
class Run:
    """One training run of a sweep."""

    arm: Arm
    rate: float
    seed: int
    split: str

    @property
    def name(self) -> str:
        """Its folder below the sweep's runs."""
        return f"{self.arm.folder}/lr-{self.rate:g}/{self.split}-seed-{self.seed}"


@dataclass
class Sweep:
    """A sweep in its folder.

    Attributes:
        task: as ``onelora train`` calls it.
        methods: names of arms, see `arms.Arm.parse`; ``arms`` has them by name.
        rates: the same for all arms; None: each arm's own, widened until the best lies inside.
        metric: what arms are ranked by; None: the task's main one.
        flags: of the script, for all runs. joins_validation: the final runs train on the validation split, too.
        more_metrics: further columns of the table. sections: names of arms by the title of a table of their own.
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
        self.arms = parse_arms(list(self.methods))
        self.methods = list(self.arms)
        for what, values in (("seed", self.seeds), ("learning rate", self.rates or ())):
            if len(set(values)) < len(values):
                raise InputError(f"a {what} is given twice: {', '.join(map(str, values))}")
        if any(not (rate > 0 and math.isfinite(rate)) for rate in self.rates or ()):
            raise InputError(f"learning rates must be greater than 0: {', '.join(f'{r:g}' for r in self.rates)}")
        if any(not 0 <= seed < 2**31 for seed in self.seeds):
            raise InputError(f"seeds must be from 0 to 2^31 - 1: {', '.join(map(str, self.seeds))}")

    def open(self) -> None:
        """Note the settings in the folder.

        Raises:
            InputError: a sweep with another task or other flags is there, whose runs cannot be compared with these.
        """
        claim(self.folder, {"task": self.task, "flags": list(self.flags), "metric": self.metric})

    def place(self, run: Run) -> Path:
        """The run's ``--output_dir``."""
        return self.folder / RUNS / run.name

    def arguments(self, run: Run) -> list[str]:
        """The script's command line for a run, which continues what an earlier start of it has done."""
        rate = [f"--learning_rate={run.rate:g}"]
        if run.arm.method == "head":  # what it trains has the other rate in the scripts
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
        """What a run that is done has measured, ``{"failed": reason}`` if its numbers went wrong, else None."""
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
        """The name of the metric that counts.

        Raises:
            InputError: it is not measured, or another of the table's columns.
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
        """The figure that a run is ranked by; None of one that failed or measured no number."""
        result = self.result(run)
        if result is None or "failed" in result:
            return None
        return result["metrics"]["after"][self.metric_of(result)]

    # ------------------------------------------------------------------------------------------------- the plan

    def rates_of(self, name: str) -> list[float]:
        """The rates that are tried for an arm, as far as the runs that are done tell; in increasing order."""
        arm = self.arms[name]
        if arm.rate_of is not None:
            return []
        if self.rates is not None:
            return sorted(self.rates)
        middle = _LADDER.index(FIRST_RATES.get(arm.method, _USUAL_RATE))
        low, high = middle - 1, middle + 1
        while high - low < _MOST_RATES - 1:
            tried = [self._trial(arm, rate) for rate in _LADDER[low : high + 1]]
            if any(self.result(run) is None for run in tried):
                break
            best = self._best(tried)
            if best is None or best == tried[0]:  # if all failed, the rates were too great
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
        """The runs that choose an arm's rate; none for one that takes another's."""
        return [self._trial(self.arms[name], rate) for rate in self.rates_of(name)]

    def _best(self, runs: Sequence[Run]) -> Run | None:
        figures = {run: figure for run in runs if (figure := self.figure(run)) is not None and math.isfinite(figure)}
        if not figures:
            return None
        is_higher = higher_is_better(self.metric_of(self.result(next(iter(figures)))))
        return (max if is_higher else min)(figures, key=figures.get)

    def best_trial(self, name: str) -> Run | None:
        """The trial that won, of the arm itself or of the one whose rate it takes; None while one is missing, or if none
        gave a number."""
        trials = self.trials(self.arms[name].rate_of or name)
        return None if any(self.result(run) is None for run in trials) else self._best(trials)

    def is_inside(self, name: str) -> bool:
        """Whether rates on both sides of the best one were tried."""
        best, rates = self.best_trial(name), self.rates_of(self.arms[name].rate_of or name)
        return best is not None and rates[0] < best.rate < rates[-1]

    def finals(self, name: str) -> list[Run]:
        """The runs that are judged on the test split; none before the rate is known."""
        best = self.best_trial(name)
        return [Run(self.arms[name], best.rate, seed, TEST) for seed in self.seeds] if best else []

    def runs(self) -> Iterator[Run]:
        """All runs that are known so far, in the order to do them."""
        for name in self.arms:
            yield from self.trials(name)
        for name in self.arms:
            yield from self.finals(name)

    def missing(self) -> list[Run]:
        """Those that are not done."""
        return [run for run in self.runs() if self.result(run) is None]


def claim(folder: Path, now: dict[str, Any]) -> None:
    """Note the settings ``now`` in the folder of a sweep, which is made if it is missing.

    Raises:
        InputError: a sweep with other settings is there, or files that are no sweep's.
    """
    path = folder / SETTINGS
    if path.exists():
        before = read_settings(path)
        if differ := [name for name in now if before.get(name) != now[name]]:
            raise InputError(
                f"{folder}: a sweep with another {differ[0]} is there ({before.get(differ[0])!r}, now "
                f"{now[differ[0]]!r}); methods, rates and seeds may change, for the rest choose another --output_dir"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty and no sweep's; choose another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {**now, "written_by": "onelora_vision"})


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that `claim` wrote.

    Raises:
        InputError: the file is not one of a sweep.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["written_by"] == "onelora_vision":
            return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise InputError(f"{path}: not a sweep's; choose another --output_dir")
