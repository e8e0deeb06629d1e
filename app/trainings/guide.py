"""The trainings that the page offers, their default settings (docs/choose.md), and their commands."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from onelora_vision.errors import InputError, nearest

EMBEDDED = "embedded"
SAMPLES = 8  # pictures or evaluations during a run
MAX_STEPS = 20_000


@dataclass(frozen=True)
class Kind:
    """A task that can be trained.

    Attributes:
        script: of ``onelora train``. task: as adapters name it.
        steps: to begin with. takes_images: whether images in class folders can be sent.
        draws: whether the run draws pictures while it trains. pictures: what they and its last picture show.
        flags: that the run always has; embedded_flags: on the embedded data only.
    """

    script: str
    task: str
    steps: int
    takes_images: bool
    draws: bool
    pictures: str
    flags: tuple[str, ...] = ()
    embedded_flags: tuple[str, ...] = ()


KINDS = {
    "Draw the classes": Kind(
        "dit",
        "generation",
        400,
        True,
        True,
        "Drawn on the same noise",
        ("--num_validation_images", "2"),
        ("--guidance_scale", "2.5"),
    ),
    "Recognise the classes": Kind("classification", "classification", 200, True, False, "Images with their answers"),
    "Estimate depth": Kind("depth", "depth", 200, False, True, "Depth by the base, as trained, and true"),
}


@dataclass(frozen=True)
class Choice:
    """A method with its flags and the learning rate to begin with."""

    flags: tuple[str, ...]
    rate: float


#: The rows of the table in docs/choose.md.
METHODS = {
    "1LoRA: one vector per layer": Choice(("--method", "onelora"), 6e-3),
    "1LoRA, singular: same size, better results": Choice(("--method", "onelora", "--compression", "singular"), 2e-3),
    "1LoRA with rms: no search for a rate": Choice(("--method", "onelora", "--sum_scale", "rms"), 1e-1),
    "1LoRA and norms: for classifiers": Choice(("--method", "onelora_norms"), 6e-3),
    "LoRA": Choice(("--method", "lora"), 2e-2),
    "DoRA": Choice(("--method", "dora"), 2e-2),
    "Full: everything is trained": Choice(("--method", "full"), 2e-3),
    "Head only": Choice(("--method", "head"), 3e-2),
}


@dataclass(frozen=True)
class Settings:
    """What a person chooses.

    Attributes:
        kind, method: keys of `KINDS` and `METHODS`. base: a name that `app.bases.Bases.source` knows; empty: embedded.
        rate: learning rate; None: the method's.
        measure: measure samples of the embedded generator against real images, which takes longer.
    """

    kind: str
    method: str
    base: str = ""
    steps: int = 0
    rate: float | None = None
    seed: int = 0
    measure: bool = False

    @classmethod
    def checked(
        cls, kind: str, method: str, base: str = "", steps: int = 0, rate: float | None = None, **more
    ) -> Self:
        """Settings, with the guide's values for everything that was left out.

        Raises:
            InputError: an unknown name, or a number out of range.
        """
        if kind not in KINDS:
            raise InputError(f"no training {kind[:60]!r}{nearest(kind, KINDS, 'training')}")
        if method not in METHODS:
            raise InputError(f"no method {method[:60]!r}{nearest(method, METHODS, 'method')}")
        steps, rate = int(steps or KINDS[kind].steps), float(rate or METHODS[method].rate)
        if not 1 <= steps <= MAX_STEPS:
            raise InputError(f"{steps} steps: train from 1 to {MAX_STEPS:,}")
        if not 0 < rate <= 10:
            raise InputError(f"learning rate {rate:g}: must be greater than 0 and at most 10")
        found = cls(kind, method, base, steps, rate, **more)
        if not 0 <= found.seed < 2**31:
            raise InputError(f"seed {found.seed}: must be from 0 to {2**31 - 1}")
        return found

    @classmethod
    def of(cls, values: Mapping) -> Self:
        """Settings as `as_dict` wrote them."""
        return cls.checked(**values)

    def as_dict(self) -> dict:
        return asdict(self)


def flags_of(settings: Settings, source: str, data: Path | None, output: Path) -> list[str]:
    """The flags of ``onelora train``, its script first.

    Args:
        source: what the script takes as the base. data: folder of images; None for the embedded data.
    """
    kind = KINDS[settings.kind]
    every = max(1, -(-settings.steps // SAMPLES))
    flags = [kind.script, "--pretrained_model_name_or_path", source, "--output_dir", str(output)]
    flags += [*METHODS[settings.method].flags, "--learning_rate", f"{settings.rate:g}", "--seed", str(settings.seed)]
    flags += ["--max_train_steps", str(settings.steps), "--validation_steps", str(every), *kind.flags]
    flags += ["--checkpointing_steps", str(every), "--checkpoints_total_limit", "1", "--report_to", "jsonl"]
    if kind.script == "dit" and not (settings.measure and data is None):
        flags += ["--fid_num_samples", "0"]
    if data is None:
        return [*flags, *kind.embedded_flags]
    return [*flags, "--dataset_name", "imagefolder", "--data_dir", str(data), "--on_bad_image", "skip"]
