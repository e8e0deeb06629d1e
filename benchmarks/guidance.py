"""Guidance by the adapted model's null class, by the base, and by training alone, in the embedded DiT job.

    python -m benchmarks.guidance                       # trains two adapters per seed, evaluates them, writes the
    report python -m benchmarks.guidance --runs output/dit     # evaluates the adapters of existing runs

One adapter per seed is sampled at each scale with both kinds of guidance (`--guidance_base` of train_dit.py). Another
one is trained with ``--guidance_distillation`` and sampled without guidance, with half the network evaluations. All are
evaluated against the test split. Results are kept in ``measured.json`` in ``--folder``, so an interrupted benchmark
resumes; table and picture are ``guidance-tables.md`` and ``images/guidance.png`` in ``--docs``.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev

from accelerate import Accelerator

from onelora_vision.adapters.container import WEIGHTS_FILE
from onelora_vision.data.content import content_hash
from onelora_vision.diffusion.loss_settings import LossSettings
from onelora_vision.diffusion.settings import parse_numbers
from onelora_vision.errors import InputError
from onelora_vision.inference.generation import Generator
from onelora_vision.inference.loading import load_adapted
from onelora_vision.metrics.generative import Protocol
from onelora_vision.plots.figures import saved_figure
from onelora_vision.plots.tables import markdown_lines
from onelora_vision.runtime.command import exits_cleanly
from onelora_vision.storage.files import atomic_file, write_json
from onelora_vision.tasks.sample_evaluation import ImageSampler, SampleEvaluator
from onelora_vision.training.command_line import parse_config
from onelora_vision.training.sampling_options import GUIDANCE_SCALE
from train_scripts import train_dit

OWN, BASE, DISTILLED = "its own null class", "the base", "the training"
COLORS = {OWN: "#7f7f7f", BASE: "#1f4e8c", DISTILLED: "#c0392b"}
METRICS = {  # by metric, with the features' name: heading, factor, digits
    "fd_{}": ("Fréchet distance", 1, 2),
    "precision_{}": ("precision", 1, 3),
    "recall_{}": ("recall", 1, 3),
    "coverage_{}": ("coverage", 1, 3),
    "class_accuracy": ("class accuracy %", 100, 1),
}
QUICK = {"max_train_steps": 2, "num_inference_steps": 2, "validation_loss_steps": 0}
TABLE, PICTURE = "guidance-tables.md", "images/guidance.png"


@dataclasses.dataclass(frozen=True)
class Point:
    """One row of the table for one seed: what guides, at which scale, and the metrics."""

    guide: str
    scale: float
    protocol: str
    metrics: dict[str, float]


# ------------------------------------------------------------------------------------------------------------ runs


def train_run(folder: Path, seed: int, distillation: float | None, overrides: dict) -> Path:
    """The folder of a seed's trained run, which is trained now if it does not exist."""
    place = folder / f"{'distilled' if distillation else 'plain'}-{seed}"
    flags = {"seed": seed, "checkpointing_steps": 0, "fid_num_samples": 0, "num_validation_images": 0, **overrides}
    flags |= {"guidance_distillation": distillation} if distillation else {"guidance_scale": GUIDANCE_SCALE}
    if (place / "adapter").is_dir() and all(getattr(config_of(place), name) == flags[name] for name in flags):
        return place
    flags |= {"output_dir": place, "overwrite": True, "report_to": "none"}
    try:
        train_dit.main([f"--{name}={value}" for name, value in flags.items()])
    except SystemExit as ended:
        if ended.code:
            raise InputError(f"{place}: the training ended with exit code {ended.code}, see above") from None
    return place


def config_of(place: Path) -> train_dit.DiTConfig:
    """The settings of a run.

    Raises:
        InputError: it has none, or is not a run of train_dit.py.
    """
    return parse_config(train_dit.DiTConfig, ["--config", str(place / "config.yaml")])


# ----------------------------------------------------------------------------------------------------- measurements


class Measurements:
    """Evaluates adapters, by adapter and protocol; results in ``file`` are not measured again."""

    def __init__(self, file: Path, num_samples: int):
        self.file, self.num_samples = file, num_samples
        self.rows: list[dict] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
        self._evaluators: dict[str, SampleEvaluator] = {}  # by all settings that the real images depend on, and others

    def points(self, place: Path, scales: Sequence[float]) -> Iterator[Point]:
        """A run's adapter at every scale with both kinds of guidance; if trained towards guidance, without any."""
        generator = load_adapted(place / "adapter")
        evaluator = self._evaluator(generator, config_of(place), place)
        wanted = [(guide, scale) for guide in (OWN, BASE) for scale in scales]
        if generator.info.guidance_distillation:
            wanted = [(DISTILLED, 1.0)]
        for guide, scale in wanted:
            changed = evaluator.sampling(guidance_scale=scale, guidance_base=guide == BASE)
            yield Point(guide, scale, changed.protocol.line(), self._measure(changed, generator, place))

    def _evaluator(self, generator: Generator, config: train_dit.DiTConfig, place: Path) -> SampleEvaluator:
        """An evaluator as in the run itself; the real images are measured once for runs that differ only in seeds."""
        config, base = dataclasses.replace(config, fid_num_samples=self.num_samples), generator.base
        sampler = ImageSampler(base.vae, base.schedule, config.sampling(), config.eval_batch_size)
        own = {"seed": 0, "guidance_distillation": None, "guidance_scale": 1.0, "output_dir": ".", "overwrite": False}
        key = repr(dataclasses.replace(config, **own))
        if key not in self._evaluators:
            found = train_dit.make_evaluator(config, base, sampler, Accelerator())
            if found is None:
                raise InputError(f"{place}: its samples are not evaluated; use a run with --fid_features")
            self._evaluators[key] = found
        of_run = {"sampler": sampler, "seed": config.seed, "distillation": config.guidance_distillation}
        return dataclasses.replace(self._evaluators[key], **of_run)

    def _measure(self, evaluator: SampleEvaluator, generator: Generator, place: Path) -> dict[str, float]:
        key = {"adapter": content_hash(place / "adapter" / WEIGHTS_FILE), "protocol": evaluator.protocol.line()}
        for row in self.rows:
            if key.items() <= row.items():
                return row["metrics"]
        text = evaluator.sampler.settings.guidance_text()
        metrics = evaluator(generator.model, Accelerator(), f"{place.name}, {text}")
        self.rows.append({**key, "run": place.name, "metrics": metrics})
        write_json(self.file, self.rows)
        return metrics


# ----------------------------------------------------------------------------------------------------------- report


def grouped(points: Sequence[Point]) -> dict[tuple[str, float], list[Point]]:
    """The points of all seeds, by guide and scale.

    Raises:
        InputError: the points of a group were measured with different protocols.
    """
    groups: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        groups.setdefault((point.guide, point.scale), []).append(point)
    for first, *others in groups.values():
        for other in others:
            Protocol.parse(first.protocol).require_comparable(Protocol.parse(other.protocol))
    return groups


def table(groups: dict[tuple[str, float], list[Point]]) -> list[str]:
    """Markdown: one row per guide and scale, mean ± standard deviation over the seeds."""
    head = ["guidance from", "scale", "evaluations per step", *(heading for heading, _, _ in METRICS.values())]
    rows = []
    for (guide, scale), members in groups.items():
        distilled = Protocol.parse(members[0].protocol).guidance_distillation
        shown = f"{scale:g}" if guide != DISTILLED else f"{distilled:g} in training"
        cells = [_spread(_values(members, name), factor, digits) for name, (_, factor, digits) in METRICS.items()]
        rows.append([guide, shown, "1" if scale == 1 else "2", *cells])
    return markdown_lines(head, rows)


def _spread(values: Sequence[float | None], factor: float, digits: int) -> str:
    """Mean ± sample standard deviation."""
    if not values or None in values:
        return "–"
    shown = f"{factor * mean(values):.{digits}f}"
    return f"{shown} ± {factor * stdev(values):.{digits}f}" if len(values) > 1 else shown


def _values(members: Sequence[Point], name: str) -> list[float | None]:
    return [point.metrics.get(name.format(Protocol.parse(point.protocol).features)) for point in members]


def draw(path: Path, groups: dict[tuple[str, float], list[Point]]) -> None:
    """One panel per metric over the scale, with a curve per guide; samples without guidance are a horizontal line."""
    with saved_figure(path, (3.1 * len(METRICS), 3.2)) as figure:
        panels = figure.subplots(1, len(METRICS))
        for axes, (name, (heading, factor, _)) in zip(panels, METRICS.items()):
            for guide, color in COLORS.items():
                means = {
                    scale: factor * sum(values) / len(values)
                    for (of, scale), members in groups.items()
                    if of == guide and None not in (values := _values(members, name))
                }
                if guide == DISTILLED:
                    for value in means.values():
                        axes.axhline(value, color=color, linestyle="--", label=f"guidance from {guide}")
                elif means:
                    axes.plot(means.keys(), means.values(), marker="o", color=color, label=f"guidance from {guide}")
            axes.set(title=heading, xlabel="guidance scale")
            axes.grid(alpha=0.2)
        panels[0].legend(frameon=False, fontsize=7)


def report(points: Sequence[Point], seeds: Sequence[int], command: str) -> list[str]:
    """The page: table, picture, and how it was measured."""
    groups = grouped(points)
    protocol = Protocol.parse(points[0].protocol)
    return [
        f"<!-- written by `{command}`; do not edit -->",
        "# Guidance: table",
        "",
        f"Mean ± standard deviation over {len(seeds)} seed{'s' * (len(seeds) != 1)} ({', '.join(map(str, seeds))}), "
        f"{protocol.generated:,} samples against {protocol.reference:,} images of {protocol.split}, {protocol.sampler} with "
        f"{protocol.steps} steps, features {protocol.features}. Written by `{command}`.",
        "",
        *table(groups),
        "",
        f"![Metrics over the guidance scale]({PICTURE})",
        "",
    ]


# ---------------------------------------------------------------------------------------------------------- command


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", nargs="+", type=Path, help="folders of runs to evaluate instead of training new ones"
    )
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated seeds of the runs to train")
    parser.add_argument("--scales", default="1,1.5,2,2.5,3,4", help="comma-separated guidance scales")
    parser.add_argument(
        "--distillation",
        type=float,
        default=train_dit.EMBEDDED_DISTILLATION,
        help="--guidance_distillation of the other adapter",
    )
    parser.add_argument("--num_samples", type=int, default=500, help="number of images for each point")
    parser.add_argument("--folder", type=Path, default=Path("output/guidance"), help="for runs and measurements")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder for table and picture")
    parser.add_argument(
        "--quick", action="store_true", help="two steps, few samples, all in --folder: to test the script"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.scales, args.num_samples = "0", "1,2", 10
        args.folder = args.docs = args.folder / "quick"
    args.seeds = [int(seed) for seed in parse_numbers(args.seeds, "--seeds")]
    args.scales = parse_numbers(args.scales, "--scales")
    LossSettings(guidance_distillation=args.distillation)  # refuses invalid values
    if args.num_samples < 7:  # otherwise precision, recall and coverage are omitted
        raise InputError(f"--num_samples is {args.num_samples}, but must be at least 7")
    return args


def places(args: argparse.Namespace) -> Iterator[Path]:
    """The runs, each trained when it is needed."""
    if args.runs:
        yield from args.runs
        return
    for seed in args.seeds:
        for distillation in (None, args.distillation):
            yield train_run(args.folder, seed, distillation, QUICK if args.quick else {})


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    measurements, points, seeds = Measurements(args.folder / "measured.json", args.num_samples), [], []
    for place in places(args):
        seeds.append(config_of(place).seed)
        points += measurements.points(place, args.scales)
    seeds_or_runs = f"--seeds {','.join(map(str, args.seeds))} --distillation {args.distillation:g}"
    if args.runs:
        seeds_or_runs = f"--runs {' '.join(place.name for place in args.runs)}"
    scales = ",".join(f"{scale:g}" for scale in args.scales)
    options = f"{seeds_or_runs} --scales {scales} --num_samples {args.num_samples}"
    command = f"python -m benchmarks.guidance {options}{' --quick' * args.quick}"
    text = report(points, list(dict.fromkeys(seeds)), command)
    (args.docs / PICTURE).parent.mkdir(parents=True, exist_ok=True)
    draw(args.docs / PICTURE, grouped(points))
    with atomic_file(args.docs / TABLE) as temporary:
        temporary.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
