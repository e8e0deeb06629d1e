"""The study's cells: which runs there are, and the results of those that are done."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from onelora_vision import embedded
from onelora_vision.methods.names import COMBINATIONS, find_method

FOLDER = Path(__file__).parent / "results" / "study"
METHODS = (
    "head",
    "onelora",
    "onelora_norms",
    "bitfit",
    "difffit",
    "lora",
    "dora",
    "vera",
    "mora1",
    "mora6",
    "full",
)
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = (0, 1, 2)
SHOTS = (5, 10, 20, 50)
FEW_SHOT_METHODS = ("head", "onelora", "lora", "full")
ABLATION = tuple(find_method(parts).name for parts in COMBINATIONS)  # "sum" is onelora, and so on


ATTENTION = (("target_modules", "att"),)
LAYERS_METHODS = ("onelora", "lora")

Variant = tuple[tuple[str, object], ...]
COMPRESSIONS: dict[str, Variant] = {
    "random": (("compression", "random"),),
    "random signs": (("vector", "signs"),),
    "singular vector of W0": (("compression", "singular"),),
    "principal component of x": (("vector", "principal"),),
    "sum / √k": (("scale", "unit"),),
    "sum, --sum_scale rms": (("sum_scale", "rms"),),
}
"""1LoRA's variants by their names in tables; `vector` and `scale` are those of `benchmarks.compressions`."""
RATE_FACTORS = {"singular": 0.1, "principal": 0.1, "unit": 10, "rms": 10}
"""Their compressed inputs are so much larger or smaller that the same rates would test nothing."""


@dataclass(frozen=True)
class Job:
    """One embedded job: its script's flags in the study, how its cells are ranked, and what its steps are made of."""

    script: str
    base: Path
    batch: int
    metric: str
    greater_is_better: bool
    validation: dict
    flags: dict = field(default_factory=dict)
    has_head: bool = True  # whether the method "head" has something to train


JOBS = {
    "classification": Job(
        "train_classification",
        embedded.VIT,
        32,
        "top1",
        True,
        {"eval_split": "validation"},
        {"max_train_steps": 200, "eval_batch_size": 256},
    ),
    "depth": Job(
        "train_depth",
        embedded.DEPTH,
        16,
        "abs_rel",
        False,
        {"eval_split": "validation"},
        {"max_train_steps": 100, "max_train_samples": 500, "max_eval_samples": 100, "num_validation_images": 0},
        has_head=False,
    ),
    "generation": Job(
        "train_dit",
        embedded.DIT,
        64,
        "fd_embedded",
        False,
        {"fid_split": "validation"},
        {"max_train_steps": 200, "fid_num_samples": 300, "num_inference_steps": 10, "num_validation_images": 1},
    ),
}


@dataclass(frozen=True)
class Cell:
    """One training run. ``variant`` holds further flags, as sorted pairs; ``stage`` is why it is run."""

    job: str
    method: str
    learning_rate: float
    seed: int
    split: str
    variant: Variant = ()

    @property
    def path(self) -> Path:
        """Folder of the cell, below the study's."""
        extra = "".join(f",{name}={value}" for name, value in self.variant)
        return Path(self.job) / f"{self.method}{extra},lr={self.learning_rate:g},seed={self.seed},{self.split}"

    @property
    def compression(self) -> dict[str, str]:
        """``vector`` and ``scale``, where they are not the package's own."""
        return {name: value for name, value in self.variant if name in ("vector", "scale")}

    def flags(self) -> dict:
        """The script's flags."""
        job = JOBS[self.job]
        flags = {**job.flags, **dict(self.variant), "method": self.method, "seed": self.seed}
        if self.compression:
            flags = {name: value for name, value in flags.items() if name not in self.compression}
            flags["compression"] = "random"  # whose vectors are then replaced
        flags["learning_rate"] = self.learning_rate
        if self.method == "head":  # what it trains has the other rate in the scripts
            flags["head_learning_rate"] = self.learning_rate
        if self.split == "validation":
            flags.update(job.validation)
        return {**flags, "checkpointing_steps": 0, "report_to": "none"}


# ---------------------------------------------------------------------------------------------------------- the plan


def rates_of(variant: Variant) -> tuple[float, ...]:
    """The rates that are tried: as many for each, around another middle where v is much longer or shorter."""
    factor = next((RATE_FACTORS[value] for _, value in variant if value in RATE_FACTORS), 1)
    return tuple(float(f"{rate * factor:g}") for rate in RATES)


def sweep_cells(job: str, method: str, variant: Variant = ()) -> list[Cell]:
    """Every rate for a method or variant, judged on the validation split."""
    return [Cell(job, method, rate, SEEDS[0], "validation", variant) for rate in rates_of(variant)]


def best_rate(results: dict[Cell, dict], job: str, method: str, variant: Variant = ()) -> float | None:
    """The rate with the best validation figure, or None while the sweep is not complete; no figure is the worst."""
    cells = sweep_cells(job, method, variant)
    if not all(cell in results for cell in cells):
        return None
    figures = {cell.learning_rate: figure(results[cell], job) for cell in cells}
    known = {rate: value for rate, value in figures.items() if value is not None}
    if not known:
        return None
    return (max if JOBS[job].greater_is_better else min)(known, key=known.get)


def final_cells(
    results: dict[Cell, dict], job: str, method: str, variant: Variant = (), extra: Variant = ()
) -> list[Cell]:
    """The test runs of all seeds at the best rate of (method, variant), with ``extra`` flags; none before it is known."""
    rate = best_rate(results, job, method, variant)
    return [] if rate is None else [Cell(job, method, rate, seed, "test", variant + extra) for seed in SEEDS]


def figure(result: dict, job: str, when: str = "after") -> float | None:
    """The figure that the job is ranked by; None where it was no finite number or training broke off."""
    return result["metrics"][when].get(JOBS[job].metric) if "metrics" in result else None


def methods_of(job: str) -> list[str]:
    """The methods that have something to train in a job."""
    return [method for method in METHODS if method != "head" or JOBS[job].has_head]


def wanted_cells(results: dict[Cell, dict], jobs: Iterable[str]) -> list[Cell]:
    """The cells of all stages, as far as the sweeps that are done tell their rates; in the order to run them."""
    cells = [cell for job in jobs for method in methods_of(job) for cell in sweep_cells(job, method)]
    for job in jobs:
        for method in methods_of(job):
            cells += final_cells(results, job, method)
        rate = best_rate(results, job, "onelora")
        if rate is not None:
            cells += [Cell(job, method, rate, SEEDS[0], "test") for method in ABLATION]
    for method, shots in itertools.product(FEW_SHOT_METHODS if "classification" in jobs else (), SHOTS):
        if shots != 20:  # 20 is what the other stages have
            cells += final_cells(results, "classification", method, extra=(("few_shot", shots),))
    for job, method in itertools.product(jobs, LAYERS_METHODS):
        cells += final_cells(results, job, method, extra=ATTENTION)
    for job, variant in itertools.product(jobs, COMPRESSIONS.values()):
        cells += sweep_cells(job, "onelora", variant)
        cells += final_cells(results, job, "onelora", variant)
    return list(dict.fromkeys(cells))


def read_results(folder: Path, cells: Iterable[Cell]) -> dict[Cell, dict]:
    """The cells that have been run."""
    return {cell: json.loads(p.read_text()) for cell in cells if (p := folder / cell.path / "results.json").exists()}


def load_study(folder: Path, jobs: Iterable[str] = tuple(JOBS)) -> tuple[list[Cell], dict[Cell, dict]]:
    """All cells known so far, and the results of those that have been run."""
    cells, results = [], {}
    while True:  # a finished sweep tells further cells
        wanted = wanted_cells(results, jobs)
        if wanted == cells:
            return cells, results
        cells, results = wanted, read_results(folder, wanted)


def load_times(folder: Path) -> dict:
    """What `measure_times` kept, by job."""
    path = folder / "times.json"
    return json.loads(path.read_text()) if path.exists() else {}
