"""PEFT's own methods that adapt linear layers: what each trains, and its default settings.

The defaults use as few parameters as is sensible, about one vector per layer, and start at the base's own outputs
if the method can. Plain data: nothing here imports PEFT. ``--peft_config`` takes any other settings.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PeftMethod:
    """One of PEFT's methods.

    Attributes:
        name: the PEFT type in lower case, or the name of a preset.
        trains: what is trained in each adapted layer (out d, in k), for tables and cards.
        peft_type: the PEFT type; default: the name in upper case.
        rank: the config field set by ``--rank``, and its default; None for methods without a rank.
        seed: the config field that takes the run's seed; empty if it uses torch's generator or no random numbers.
        sizes: config fields that depend on the layers' sizes, and how (see `methods.apply`): "common" is the greatest
            common divisor of all inputs and outputs, "outputs" the smallest number of outputs.
        settings: other config fields.
        on_norms: whether it adapts the norms instead of the linear layers.
        reads_weights: whether it starts from the base's weights and therefore cannot be applied to a model without any.
        off_base: why it does not start at the base's outputs; empty if it does.
    """

    name: str
    trains: str
    peft_type: str = ""
    rank: tuple[str, int] | None = None
    seed: str = ""
    sizes: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    on_norms: bool = False
    reads_weights: bool = False
    off_base: str = ""

    @property
    def kind(self) -> str:
        """The PEFT type."""
        return self.peft_type or self.name.upper()


_SMALL_RANDOM = "its trained values start at small random numbers, and the layers use all of them"

PEFT_METHODS = (
    PeftMethod(
        "adalora",
        "A (r k) + E (r) + B (d r), with the rank distributed among the layers",
        rank=("init_r", 2),
        # the budget of an average layer is half of its initial rank
        settings={"target_r": 1, "deltaT": 10, "total_step": 1},  # `training.rank_allocation` sets the steps
    ),
    PeftMethod(
        "adamss",
        "a small factorisation of each of 5 subspaces of W",
        seed="random_seed",
        settings={"r": 16},
        reads_weights=True,
    ),
    PeftMethod("beft", "beta (d)"),
    PeftMethod("boft", "rotated blocks of 2 inputs (2 k) + s (d)", settings={"boft_block_size": 2}),
    PeftMethod("c3a", "circulant blocks (d k / gcd)", sizes={"block_size": "common"}, settings={"init_weights": True}),
    PeftMethod("deft", "P (d r) + R (r k)", rank=("r", 1)),
    PeftMethod("delora", "A (r k) + B (d r) + lambda (1)", rank=("r", 1)),
    PeftMethod(
        "fourierft",
        "n coefficients of a Fourier transform",
        seed="random_loc_seed",
        sizes={"n_frequency": "outputs"},
        settings={"init_weights": True},
    ),
    PeftMethod(
        "frod",
        "lambda (k) and 1 % of a square matrix",
        seed="projection_prng_key",
        settings={"progressbar": False},
        reads_weights=True,
    ),
    PeftMethod("glora", "five supports: A, B, C as rank-r factors, D and E (d)", rank=("r", 1)),
    PeftMethod("gralora", "A and B of 2 x 2 blocks", rank=("r", 2), settings={"alpha": 2}),
    PeftMethod("hira", "A (r k) + B (d r), times W", rank=("r", 1)),
    PeftMethod("hra", "r Householder reflections (r k), r even", rank=("r", 2)),
    PeftMethod("ia3", "a factor for each output (d)", settings={"feedforward_modules": []}),
    PeftMethod("lily", "A (r k), B (d r) shared, with a router", rank=("r", 1), settings={"num_B": 2}),
    PeftMethod("ln_tuning", "norms", on_norms=True),
    PeftMethod("loha", "two pairs of rank-r factors (2 r (d + k))", rank=("r", 1), settings={"alpha": 1}),
    PeftMethod("lokr", "a Kronecker product of small factors", rank=("r", 1), settings={"alpha": 1}),
    PeftMethod("miss", "B (r d); for r = 1 the same as onelora", rank=("r", 1)),
    PeftMethod("oft", "rotated blocks of 2 inputs (k / 2)", settings={"r": 0, "oft_block_size": 2}),
    PeftMethod("osf", "half of the singular vectors and values of W"),
    PeftMethod("peanut", "A (r k) + B (d r), with W between them", rank=("r", 1)),
    PeftMethod(
        "psoft",
        "a rotation of the first r singular vectors, with two scales",
        rank=("r", 16),
        seed="random_seed",
    ),
    PeftMethod("pvera", "b (d) + d (2 r), resampled at each training step", rank=("r", 1), seed="projection_prng_key"),
    PeftMethod(
        "randlora",
        "scales of fixed random factors, rebuilt from the seed",
        rank=("r", 32),
        seed="projection_prng_key",
        settings={"save_projection": False},
    ),
    PeftMethod("road", "a rotation and a scale for each pair of outputs (2 x d / 2)", settings={"group_size": 2}),
    PeftMethod("shira", "r (d + k) scattered entries of W", rank=("r", 1), seed="random_seed", reads_weights=True),
    PeftMethod("supertuning", "the largest 1 % of the entries of W"),
    PeftMethod("tinylora", "u numbers for several layers", rank=("r", 2), seed="projection_seed"),
    PeftMethod("unilora", "256 numbers for all layers", rank=("r", 1), seed="proj_seed", off_base=_SMALL_RANDOM),
    PeftMethod(
        "vblora",
        "selections from vectors shared by all layers",
        rank=("r", 1),
        sizes={"vector_length": "common"},
        settings={"num_vectors": 64},
        off_base=_SMALL_RANDOM,
    ),
    PeftMethod("vera128", "b (d) + d (128)", "VERA", rank=("r", 128), seed="projection_prng_key"),
    PeftMethod(
        "waveft", "n coefficients of a wavelet transform", seed="random_loc_seed", sizes={"n_frequency": "outputs"}
    ),
)
