"""The methods by name and what each trains. Plain data, so that typos are refused before any slow import.

In addition to the names in the table, every combination of {sum, bias, scale, norms} is a method (the 1LoRA paper's
ablation): ``sum+norms`` is onelora_norms, ``bias`` is bitfit, ``bias+scale+norms`` is difffit. The rows for PEFT's
other methods are built from `methods.peft_methods`.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from onelora_vision.compressions import MAX_RANK
from onelora_vision.errors import InputError, nearest
from onelora_vision.methods.peft_methods import PEFT_METHODS, PeftMethod
from onelora_vision.runtime.plugins import import_plugins

if TYPE_CHECKING:
    from collections.abc import Callable

    from peft import PeftConfig

PARTS = ("sum", "bias", "scale", "norms")
_SYMBOLS = {"sum": "b (d)", "bias": "beta (d)", "scale": "gamma (d)", "norms": "norms"}
_DIVERGES = (
    "scale (gamma) together with sum (b) can diverge (the 1LoRA paper's ablation): "
    "leave scale out, or lower the learning rate"
)


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: what the user types.
        trains: what is trained in each adapted layer W (out d, in k), with its size; for tables and cards.
        parts: the `PARTS` of a member of 1LoRA's family; empty for other methods.
        adapts_layers: whether linear layers get adapters (not for norms, head and full).
        trains_norms: whether the norms are trained whole. trains_all: whether every module is.
        rank: the default rank; None for methods without one.
        takes_alpha: whether ``lora_alpha`` applies; takes_compression: whether ``compression`` does.
        hint: what to try when training gives NaN.
        peft: the underlying method of PEFT, if the package has no config for it.
        config: makes the PEFT config from `methods.apply.Options`; None for the methods included in the package.
    """

    name: str
    trains: str
    parts: tuple[str, ...] = ()
    adapts_layers: bool = True
    trains_norms: bool = False
    trains_all: bool = False
    rank: int | None = None
    takes_alpha: bool = False
    takes_compression: bool = False
    hint: str = "lower the learning rate"
    peft: PeftMethod | None = None
    config: "Callable[..., PeftConfig] | None" = None


def _family(name: str, *parts: str) -> Method:
    """A member of 1LoRA's family: any of the parts sum, bias, scale, norms."""
    return Method(
        name,
        trains=" + ".join(_SYMBOLS[part] for part in parts) or "nothing",
        parts=parts,
        adapts_layers=bool({"sum", "bias", "scale"} & set(parts)),
        trains_norms="norms" in parts,
        takes_compression="sum" in parts,
        **({"hint": _DIVERGES} if {"sum", "scale"} <= set(parts) else {}),
    )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        _family("onelora", "sum"),
        _family("onelora_norms", "sum", "norms"),
        _family("bitfit", "bias"),
        _family("difffit", "bias", "scale", "norms"),
        Method("lora", "A (r k) + B (d r)", rank=1, takes_alpha=True),
        Method("dora", "A (r k) + B (d r) + m (d)", rank=1, takes_alpha=True),
        Method("vera", "b (d) + d (r)", rank=1),
        Method("mora1", "M (r^2, r = round(sqrt(d)))"),
        Method("mora6", "M (r^2, r even, about sqrt(d))"),
        _family("head"),
        Method("full", "everything", adapts_layers=False, trains_all=True),
        *(Method(row.name, row.trains, rank=row.rank and row.rank[1], peft=row) for row in PEFT_METHODS),
    )
}

_ALIASES = {("sum",): "onelora", ("sum", "norms"): "onelora_norms", ("bias",): "bitfit", PARTS[1:]: "difffit"}

COMBINATIONS = ["+".join(parts) for size in range(1, 5) for parts in combinations(PARTS, size)]
"""All 15 combinations of the parts, in canonical order."""


def find_method(name: str) -> Method:
    """The row for a name in the table or for a combination of parts in any order (``norms+sum``).

    Raises:
        InputError: no such method; the message suggests the closest one.
    """
    if name in METHODS:
        return METHODS[name]
    parts = name.split("+")
    if set(parts) <= set(PARTS) and len(set(parts)) == len(parts):
        canonical = tuple(part for part in PARTS if part in parts)
        return METHODS[_ALIASES[canonical]] if canonical in _ALIASES else _family("+".join(canonical), *canonical)
    import_plugins()
    if name in METHODS:
        return METHODS[name]
    raise InputError(f"unknown method {name!r}{nearest(name, [*METHODS, *COMBINATIONS], 'method')}")


_LARGEST_RANK = 4096  # the width of the widest adapted layers


def check_options(
    row: Method,
    rank: int | None,
    lora_alpha: int | None,
    compression: str,
    target_modules: str | None,
    compression_rank: int | None = None,
) -> None:
    """Refuse options that are out of range, or that the method does not have.

    Raises:
        InputError: see `methods.apply.apply_method`.
    """
    if rank is not None and not 1 <= rank <= _LARGEST_RANK:
        raise InputError(f"rank={rank} is not possible: give a whole number from 1 to {_LARGEST_RANK}")
    if lora_alpha is not None and lora_alpha <= 0:
        raise InputError(f"lora_alpha={lora_alpha} is not possible: give a positive number")
    if compression_rank is not None and not 1 <= compression_rank <= MAX_RANK:
        raise InputError(
            f"compression_rank={compression_rank} is not possible: give a whole number from 1 to {MAX_RANK}"
        )
    if compression_rank is not None and compression != "subspace":
        raise InputError(f"compression_rank is for compression 'subspace', not {compression!r}")
    for option, is_given, applies, users in (
        ("rank", rank is not None, row.rank is not None, _those_with("rank")),
        ("lora_alpha", lora_alpha is not None, row.takes_alpha, _those_with("takes_alpha")),
        ("compression", compression != "sum", row.takes_compression, "methods with sum"),
        ("target_modules", target_modules is not None, row.adapts_layers, "methods that adapt linear layers"),
    ):
        if is_given and not applies:
            raise InputError(f"{option} does not apply to method {row.name}; it is for {users}")


def _those_with(attribute: str) -> str:
    return ", ".join(row.name for row in METHODS.values() if getattr(row, attribute))


#: Low-precision formats for the weights of a frozen base, as named by ``--quantize``.
QUANTISATIONS = ("none", "int8", "nf4")
_ON_QUANTISED = ("lora", "vera", "mora1", "mora6", "head")


def check_quantize(row: Method, quantize: str, peft_fields: dict | None = None) -> None:
    """Refuse a ``quantize`` that is not in `QUANTISATIONS` or that the method does not support.

    Supported are methods that neither train nor read the frozen weights.

    Raises:
        InputError: names the option and the reason.
    """
    if quantize not in QUANTISATIONS:
        raise InputError(f"--quantize {quantize}: choose {', '.join(QUANTISATIONS)}")
    if quantize == "none":
        return
    if peft_fields is not None:
        raise InputError("--quantize with --peft_config: use --method; a PEFT config may need full-precision weights")
    if not (row.parts or row.config or row.name in _ON_QUANTISED):
        raise InputError(
            f"--quantize with --method {row.name}: it trains or reads the frozen weights, which need full precision; "
            "use a member of 1LoRA's family, lora, vera or mora"
        )
