"""The supported kinds of adapter, one row each. All other modules look up a kind's properties here.

Nothing here imports torch or PEFT, since `onelora inspect` reads the table too. Functions that work on tensors are
given by name and imported when they are called.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from peft import PeftConfig


class Function(NamedTuple):
    """A function of this package, given by module and name and imported when it is called."""

    module: str
    name: str

    def __call__(self, *args: Any) -> Any:
        module = importlib.import_module(f"{__package__}.{self.module}")
        return getattr(module, self.name)(*args)


class Choice(NamedTuple):
    """The accepted values of a config field, and why there are no others."""

    values: tuple
    reason: str = ""


@dataclass(frozen=True)
class Part:
    """One tensor of an adapted layer.

    Attributes:
        neutral: the value at which it changes nothing; None if it only scales another part (LoRA's A).
        dimensions: the accepted numbers of dimensions.
        option: the config field that enables it; empty if every layer has it.
        vector: the corresponding field of `tuners.onelora.vectors.Vectors`; empty for kinds outside the 1LoRA family.
    """

    neutral: float | None = 0.0
    dimensions: tuple[int, ...] = (1,)
    option: str = ""
    vector: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of adapter, named by its ``peft_type``.

    Attributes:
        title: the method's name in prose.
        is_ours: whether PEFT knows the kind only after `import onelora_vision`; our tuner then checks its config.
        parts: the tensors of an adapted layer by their names in the file. Empty for methods of PEFT whose tensors only
            PEFT understands: they are used alone and unchanged, and fit if PEFT's names and shapes match.
        prefix: prefix of the tensors' names; by default, the kind's name in lower case.
        free_fields: config fields of PEFT's own kinds that may have any value of the right type. All others, apart from
            the fields shared by all kinds, must keep their defaults.
        choices: config fields that accept certain values only.
        rank: the config field of the rank, and the part whose first dimension equals it.
        settings: config fields that determine what the tensors mean. An adapter that differs in one of them cannot
            replace another.
        sum: function for weighted sums of adapters of this kind (`sums`); None if a sum is not an adapter of this kind.
        low_rank: function that returns the layers as `lowrank.LowRank` changes; None if they are not low-rank.
        on_norms: whether the adapted modules are norms instead of linear layers.
    """

    name: str
    title: str
    parts: Mapping[str, Part]
    is_ours: bool = False
    free_fields: frozenset[str] = frozenset()
    choices: Mapping[str, Choice] = field(default_factory=dict)
    rank: tuple[str, str] | None = None
    settings: tuple[str, ...] = ()
    sum: Function | None = None
    low_rank: Function | None = None
    on_norms: bool = False
    prefix: str = ""

    @property
    def marker(self) -> str:
        """The text between module and part in the names of its tensors."""
        return f".{self.prefix or self.name.lower()}_"

    @property
    def is_opaque(self) -> bool:
        """Whether only PEFT understands its tensors."""
        return not self.parts

    @property
    def vectors(self) -> dict[str, str]:
        """Part -> field of `Vectors`; empty unless the kind belongs to the 1LoRA family."""
        return {name: part.vector for name, part in self.parts.items() if part.vector}

    def neutral(self, part: str) -> float:
        """The value of a part that changes nothing; 0 for parts without one."""
        return (self.parts[part].neutral if part in self.parts else None) or 0.0

    def expected_parts(self, config: "PeftConfig") -> set[str]:
        """The parts that each layer must have according to ``config``."""
        return {name for name, part in self.parts.items() if not part.option or getattr(config, part.option)}


_LORA_FIELDS = ("r", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "use_dora", "lora_bias",
                "rank_pattern", "alpha_pattern")  # fmt: skip
_VERA_FIELDS = ("r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial", "fan_in_fan_out", "bias",
                "init_weights")  # fmt: skip

_ADALORA_FIELDS = ("r", "lora_alpha", "init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2",
                   "orth_reg_weight", "total_step")  # fmt: skip


def _opaque(title: str, name: str = "", **options: Any) -> Kind:
    """A method of PEFT whose tensors only PEFT understands. Its type is ``name``, by default the title in capitals."""
    return Kind(name or title.upper(), title, {}, **options)


def _convertible(title: str, **options: Any) -> Kind:
    """An opaque kind that PEFT can convert to LoRA."""
    return _opaque(title, low_rank=Function("lowrank", "of_conversion"), **options)


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "ONELORA",
            "1LoRA",
            {
                "onelora_b": Part(option="use_sum", vector="b"),
                "onelora_beta": Part(option="use_bias", vector="beta"),
                "onelora_gamma": Part(neutral=1.0, option="use_scale", vector="gamma"),
            },
            is_ours=True,
            settings=("compression_key",),
            sum=Function("sums", "sum_of_vectors"),
            low_rank=Function("lowrank", "of_vectors"),
        ),
        Kind(
            "MORA",
            "MoRA",
            {"mora_m": Part(dimensions=(2,))},
            is_ours=True,
            rank=("r_hat", "mora_m"),
            settings=("mora_type",),
            sum=Function("sums", "sum_of_matrices"),
        ),
        Kind(
            "MISS",
            "MiSS",
            {"miss_block": Part(dimensions=(2,))},
            free_fields=frozenset(("r", "miss_dropout", "mini_r")),
            choices={
                "init_weights": Choice((True, False), "only plain MiSS, without bat and mini, can be read"),
                "bias": Choice(("none",), "the file of a MiSS adapter does not hold biases"),
            },
            rank=("r", "miss_block"),
            settings=("r",),
            sum=Function("sums", "sum_of_matrices"),
            low_rank=Function("lowrank", "of_miss"),
        ),
        Kind(
            "LORA",
            "LoRA",
            {
                "lora_A.weight": Part(neutral=None, dimensions=(2, 4)),
                "lora_B.weight": Part(dimensions=(2, 4)),
                "lora_B.bias": Part(option="lora_bias"),
                "lora_magnitude_vector": Part(neutral=None, option="use_dora"),
            },
            free_fields=frozenset(_LORA_FIELDS),
            choices={"init_lora_weights": Choice((True, False, "gaussian", "orthogonal"))},
            rank=("r", "lora_A.weight"),
            settings=("r", "lora_alpha", "use_rslora"),
            sum=Function("sums", "sum_of_ranks"),
            low_rank=Function("lowrank", "of_lora"),
        ),
        Kind(
            "VERA",
            "VeRA",
            {"vera_lambda_b": Part(), "vera_lambda_d": Part(neutral=None)},
            free_fields=frozenset(_VERA_FIELDS),
            rank=("r", "vera_lambda_d"),
            settings=("r",),
        ),
        _opaque("AdaLoRA", free_fields=frozenset(_ADALORA_FIELDS), prefix="lora"),
        _opaque("AdaMSS"),
        _opaque("BEFT"),
        _opaque("BOFT"),
        _convertible("C3A"),
        _opaque("DEFT"),
        _convertible("DeLoRA"),
        _convertible("FourierFT"),
        _opaque("FRoD"),
        _opaque("GLoRA"),
        _convertible("GraLoRA"),
        _opaque("HiRA"),
        _opaque("HRA"),
        _opaque("IA³", name="IA3"),
        _opaque("Lily"),
        _opaque("LN tuning", name="LN_TUNING", on_norms=True),
        _convertible("LoHa", prefix="hada"),
        _convertible("LoKr"),
        _opaque("OFT"),
        _opaque("OSF"),
        _opaque("PEANuT"),
        _opaque("PSOFT"),
        _opaque("PVeRA"),
        _convertible("RandLoRA"),
        _opaque("RoAd"),
        _opaque("SHiRA"),
        _opaque("SuperTuning"),
        _convertible("TinyLoRA"),
        _convertible("UniLoRA"),
        _convertible("VB-LoRA", name="VBLORA"),
        _convertible("WaveFT"),
    )
}


def kind_of(config: "PeftConfig") -> Kind:
    """The kind of an adapter with this config."""
    return KINDS[str(getattr(config.peft_type, "value", config.peft_type))]
