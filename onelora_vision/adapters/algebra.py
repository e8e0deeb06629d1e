"""Exact algebra of adapter files: weighted sums, differences, averages and negations that are adapters again.

An adapter at weight w gives ``w b``, ``w beta`` and ``1 + w (gamma - 1)``; several adapters add their b's and betas and
multiply their gammas. That is what the layers do with several active adapters (`tuners.onelora.functional.compose`), so
``blend`` as a file equals all adapters active at those weights, and for b and beta it is the sum of what each adapter
changes. MoRA's matrices add likewise; LoRA's sum has the sum of the ranks.

Modules that are saved whole hold values P, not changes. With the base's values P0 the sum is
``P0 + sum w_i (P_i - P0)``; the weights' sum is 1 or the base must be at hand. Heads and label tables, made for the
adapter's own classes, have no such P0: they are interpolated, ``sum w_i P_i / sum w_i``.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from peft import PeftConfig
from torch import Tensor, nn

from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.adapters.layout import LORA, MORA, ONELORA, VECTOR_NAMES, Layout, block_of, kind_of, layout_of
from onelora_vision.errors import InputError
from onelora_vision.tuners.matching import exact_pattern
from onelora_vision.tuners.onelora.functional import Vectors, compose

_NEUTRAL = {"onelora_b": 0.0, "onelora_beta": 0.0, "onelora_gamma": 1.0}
_SAME_SETTINGS = ("fuse_qkv", "stock_numerics", "max_depth", "architecture", "resolution", "preprocessing")
_UNIT = 1e-6  # how far a sum of weights may be from 1 (or 0)


@dataclass
class Term:
    """An adapter with its weight in a sum; ``blocks`` gives factors on it for the numbers of some blocks."""

    adapter: Adapter
    weight: float
    blocks: Mapping[int, float] = field(default_factory=dict)

    def weight_in(self, module: str) -> float:
        """The weight for one module of the model."""
        return self.weight * self.blocks.get(block_of(module), 1.0)


def blend(
    terms: Sequence[tuple[Adapter, float]],
    *,
    blocks: Mapping[int, float] | None = None,
    base: nn.Module | None = None,
    whole_from: Adapter | None = None,
) -> Adapter:
    """The weighted sum of adapters of one base, as an adapter of the same size (LoRA: of the sum of the ranks).

    Args:
        terms: adapters with their weights, negative ones too.
        blocks: number of a block -> factor on all weights there.
        base: the base model fitted to the adapters (`adapters.bases.load_base`), where whole modules need its values.
        whole_from: take the modules saved whole from this one of the adapters instead of summing them.

    Raises:
        InputError: adapters of different bases, methods, compressions, classes or settings, or a sum that is no
            adapter; the message says which and why.
    """
    if not terms:
        raise InputError("nothing to blend: give at least one adapter")
    items = [Term(adapter, weight, blocks or {}) for adapter, weight in terms]
    for item in items:
        if not all(abs(w) < float("inf") for w in (item.weight, *item.blocks.values())):
            raise InputError(f"{item.adapter.path}: weight {item.weight} is not a finite number")
    _check_alike(items)
    layouts = [layout_of(i.adapter.config, i.adapter.tensors, str(i.adapter.path)) for i in items]
    kind = kind_of(items[0].adapter.config)
    config, layers = _KINDS[kind](items, layouts)
    result = Layout(layers, _whole_modules(items, layouts, base, whole_from))
    config.target_modules = exact_pattern(layers) if layers else items[0].adapter.config.target_modules
    config.modules_to_save = list(result.whole) or None
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    return Adapter(config, result.to_tensors(), _info(items), Path("blend"))


def scale(adapter: Adapter, weight: float, **options) -> Adapter:
    """``weight`` times an adapter."""
    return blend([(adapter, weight)], **options)


def negate(adapter: Adapter, **options) -> Adapter:
    """The adapter that does the opposite: minus b and beta, ``2 - gamma``."""
    return blend([(adapter, -1.0)], **options)


def difference(first: Adapter, second: Adapter, **options) -> Adapter:
    """What ``first`` does beyond ``second``."""
    return blend([(first, 1.0), (second, -1.0)], **options)


def average(adapters: Sequence[Adapter], **options) -> Adapter:
    """The mean of adapters, for instance of the checkpoints of one run."""
    return blend([(adapter, 1 / len(adapters)) for adapter in adapters], **options)


def _check_alike(items: Sequence[Term]) -> None:
    first = items[0].adapter
    if kind_of(first.config) not in _KINDS:
        raise InputError(
            f"{first.path}: a weighted sum of {kind_of(first.config)} adapters is no {kind_of(first.config)} adapter "
            f"(it is for {', '.join(_KINDS)}); merge them into the base instead"
        )
    for item in items[1:]:
        other = item.adapter
        where = f"{first.path} and {other.path} do not blend"
        if kind_of(other.config) != kind_of(first.config):
            raise InputError(f"{where}: one is {kind_of(first.config)}, the other {kind_of(other.config)}")
        _check_same_base(first.info, other.info, where)
        if first.info.task != other.info.task:
            raise InputError(f"{where}: one is for {first.info.task!r}, the other for {other.info.task!r}")
        if first.info.class_names != other.info.class_names:
            raise InputError(f"{where}: {_classes_differ(first.info.class_names, other.info.class_names)}")
        for key in _SAME_SETTINGS:
            if first.info.extra.get(key) != other.info.extra.get(key):
                values = f"{first.info.extra.get(key)!r} and {other.info.extra.get(key)!r}"
                raise InputError(f"{where}: their {key} is {values}, so they fit different models")


def _check_same_base(first: AdapterInfo, other: AdapterInfo, where: str) -> None:
    if first.base_fingerprint and other.base_fingerprint:
        if first.base_fingerprint != other.base_fingerprint:
            raise InputError(
                f"{where}: trained on different bases, {first.base!r} (fingerprint {first.base_fingerprint}) and "
                f"{other.base!r} ({other.base_fingerprint})"
            )
    elif first.base != other.base:
        raise InputError(f"{where}: their bases are {first.base!r} and {other.base!r}, and no fingerprint tells more")


def _classes_differ(first: list[str] | None, second: list[str] | None) -> str:
    if not first or not second or len(first) != len(second):
        return f"one has {len(first or [])} classes, the other {len(second or [])}"
    at = next(k for k, (a, b) in enumerate(zip(first, second)) if a != b)
    return f"class {at} is {first[at]!r} in one and {second[at]!r} in the other"


def _sum_of_vectors(items: Sequence[Term], layouts: Sequence[Layout]) -> tuple[PeftConfig, dict]:
    """The 1LoRA family: any mixture of b, beta and gamma; what an adapter lacks is neutral."""
    summing = [i.adapter for i in items if i.adapter.config.use_sum]
    for other in summing[1:]:
        a, b = summing[0].config.compression_key, other.config.compression_key
        if a != b:
            raise InputError(
                f"{summing[0].path} and {other.path} do not blend: b multiplies different compressions of the input, "
                f"{a} and {b}"
            )
    names = [name for name in _NEUTRAL if any(name in parts for layout in layouts for parts in layout.layers.values())]
    layers = {}
    for module in _union(layout.layers for layout in layouts):
        present = [(i, layout.layers[module]) for i, layout in zip(items, layouts) if module in layout.layers]
        _check_shapes(module, present)
        vectors = [Vectors(**{VECTOR_NAMES[name]: t.double() for name, t in parts.items()}) for _, parts in present]
        (total,) = compose(vectors, [item.weight_in(module) for item, _ in present])
        like = next(iter(present[0][1].values()))
        layers[module] = {}
        for name in names:
            value = getattr(total, VECTOR_NAMES[name])
            layers[module][name] = torch.full_like(like, _NEUTRAL[name]) if value is None else value.to(like.dtype)
    config = copy.deepcopy((summing or [items[0].adapter])[0].config)
    config.use_sum, config.use_bias, config.use_scale = (name in names for name in _NEUTRAL)
    return config, layers


def _sum_of_matrices(items: Sequence[Term], layouts: Sequence[Layout]) -> tuple[PeftConfig, dict]:
    """MoRA of one type: the bypass is linear in M."""
    types = {item.adapter.config.mora_type for item in items}
    if len(types) > 1:
        raise InputError(f"MoRA adapters of types {sorted(types)} do not blend: their matrices mean different things")
    layers = {}
    for module in _union(layout.layers for layout in layouts):
        present = [(i, layout.layers[module]) for i, layout in zip(items, layouts) if module in layout.layers]
        _check_shapes(module, present)
        total = sum(item.weight_in(module) * parts["mora_m"].double() for item, parts in present)
        layers[module] = {"mora_m": total.to(present[0][1]["mora_m"].dtype)}
    return copy.deepcopy(items[0].adapter.config), layers


def _sum_of_ranks(items: Sequence[Term], layouts: Sequence[Layout]) -> tuple[PeftConfig, dict]:
    """LoRA: ``sum w_i s_i B_i A_i`` is the product of the concatenated matrices, the weights being put into B."""
    for item in items:
        _check_plain_lora(item.adapter)
    layers = {}
    ranks = [item.adapter.config.r for item in items]
    for module in _union(layout.layers for layout in layouts):
        downs, ups = [], []
        like = next(layout.layers[module] for layout in layouts if module in layout.layers)
        for item, layout, rank in zip(items, layouts, ranks):
            parts = layout.layers.get(module)
            if parts is None:  # PEFT has one rank for all layers
                parts = {
                    key: like[key].new_zeros(shape)
                    for key, shape in (
                        ("lora_A.weight", (rank, like["lora_A.weight"].shape[1])),
                        ("lora_B.weight", (like["lora_B.weight"].shape[0], rank)),
                    )
                }
            _check_lora_shapes(module, item.adapter, parts, like)
            downs.append(parts["lora_A.weight"].double())
            ups.append(parts["lora_B.weight"].double() * (item.weight_in(module) * lora_scale(item.adapter.config)))
        dtype = like["lora_B.weight"].dtype
        layers[module] = {"lora_A.weight": torch.cat(downs).to(dtype), "lora_B.weight": torch.cat(ups, 1).to(dtype)}
    config = copy.deepcopy(items[0].adapter.config)
    config.r = config.lora_alpha = sum(ranks)
    config.use_rslora = False
    return config, layers


def _check_plain_lora(adapter: Adapter) -> None:
    config = adapter.config
    for name in ("use_dora", "lora_bias", "rank_pattern", "alpha_pattern"):
        if getattr(config, name, None):
            raise InputError(
                f"{adapter.path}: LoRA with {name} has no exact weighted sum; merge it into the base instead"
            )
    if config.bias != "none":
        raise InputError(f"{adapter.path}: LoRA with bias={config.bias!r} has no exact weighted sum")


def _check_lora_shapes(module: str, adapter: Adapter, parts: dict[str, Tensor], like: dict[str, Tensor]) -> None:
    rank = adapter.config.r
    expected = {
        "lora_A.weight": (rank, *like["lora_A.weight"].shape[1:]),
        "lora_B.weight": (like["lora_B.weight"].shape[0], rank),
    }
    shapes = {key: tuple(tensor.shape) for key, tensor in parts.items()}
    if shapes != expected or len(expected["lora_A.weight"]) != 2:
        raise InputError(f"{adapter.path}: {module} has {shapes} where a sum needs {expected}")


def lora_scale(config: PeftConfig) -> float:
    """The factor on B A: ``alpha / r``, or ``alpha / sqrt(r)`` (rsLoRA)."""
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)


_KINDS = {ONELORA: _sum_of_vectors, MORA: _sum_of_matrices, LORA: _sum_of_ranks}


def _check_shapes(module: str, present: Sequence[tuple[Term, dict[str, Tensor]]]) -> None:
    shapes = {tuple(tensor.shape) for _, parts in present for tensor in parts.values()}
    if len(shapes) > 1:
        paths = " and ".join(str(item.adapter.path) for item, _ in present)
        raise InputError(f"{paths} do not blend: {module} has shapes {sorted(shapes)}")


def _union(mappings) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _whole_modules(
    items: Sequence[Term], layouts: Sequence[Layout], base: nn.Module | None, whole_from: Adapter | None
) -> dict[str, dict[str, Tensor]]:
    if whole_from is not None:
        chosen = [layout for item, layout in zip(items, layouts) if item.adapter is whole_from]
        if not chosen:
            raise InputError(f"{whole_from.path}: whole_from must be one of the blended adapters")
        return chosen[0].whole
    return {
        module: _sum_of_whole(module, items, layouts, base) for module in _union(layout.whole for layout in layouts)
    }


def _sum_of_whole(
    module: str, items: Sequence[Term], layouts: Sequence[Layout], base: nn.Module | None
) -> dict[str, Tensor]:
    """One module saved whole: by interpolation where it belongs to the classes, else around the base's values."""
    present = [(item, layout.whole[module]) for item, layout in zip(items, layouts) if module in layout.whole]
    shapes = [{key: tuple(tensor.shape) for key, tensor in parts.items()} for _, parts in present]
    if any(shape != shapes[0] for shape in shapes):
        raise InputError(f"{module}, saved whole, has different shapes in the adapters: {shapes[0]} and {shapes[1:]}")
    weights = [item.weight_in(module) for item, _ in present]
    total = sum(weights)
    if belongs_to_classes(present[0][1], items[0].adapter.info.class_names):
        if len(present) < len(items):
            raise InputError(f"{module}, made for the adapter's classes, is not in every adapter; give whole_from")
        if abs(total) < _UNIT:
            raise InputError(
                f"{module}, made for the adapter's classes, cannot be interpolated with weights that sum to 0: "
                "take it from one of the adapters (--whole-from)"
            )
        weights, total = [weight / total for weight in weights], 1.0
    start = {}
    if abs(total - 1) > _UNIT or len(present) < len(items):
        start = _base_values(module, shapes[0], base, total, len(present) < len(items))
    result = {}
    for key, like in present[0][1].items():
        value = sum(weight * parts[key].double() for weight, (_, parts) in zip(weights, present))
        if start:
            value = value + (1 - total) * start[key].double()
        result[key] = value.to(like.dtype) if like.is_floating_point() else like
    return result


def belongs_to_classes(parts: Mapping[str, Tensor], class_names: Sequence[str] | None) -> bool:
    """Whether a module has one row per class (a head), or one more for "no class" (a label table)."""
    sizes = (len(class_names), len(class_names) + 1) if class_names else ()
    return any(tensor.ndim > 1 and tensor.shape[0] in sizes for tensor in parts.values())


def _base_values(
    module: str, shapes: dict[str, tuple], base: nn.Module | None, total: float, is_missing: bool
) -> dict[str, Tensor]:
    reason = "not every adapter has it" if is_missing else f"the weights sum to {total:.6g}, not to 1"
    if base is None:
        raise InputError(
            f"{module} is saved whole and {reason}, so its sum needs the base's own values: give the base (--base), "
            "or take the module from one of the adapters (--whole-from)"
        )
    modules = dict(base.named_modules())
    values = modules[module].state_dict() if module in modules else {}
    if {key: tuple(values[key].shape) for key in shapes if key in values} != shapes:
        raise InputError(f"{module} is saved whole and {reason}, but the base has no such module of that shape")
    return values


def _info(items: Sequence[Term]) -> AdapterInfo:
    """What the result's file says: the sources' common facts and the recipe, without their metrics."""
    first = items[0].adapter.info
    methods = list(dict.fromkeys(item.adapter.info.method for item in items))
    recipe = [
        {"adapter": item.adapter.path.name, "weight": item.weight, "method": item.adapter.info.method}
        for item in items
    ]
    extra = {**first.extra, "blend": recipe}
    if items[0].blocks:
        extra["blend_blocks"] = {str(block): factor for block, factor in sorted(items[0].blocks.items())}
    mark = next((i.adapter.info.base_fingerprint for i in items if i.adapter.info.base_fingerprint), "")
    return replace(
        first,
        method=methods[0] if len(methods) == 1 else " + ".join(methods),
        base_fingerprint=mark,
        metrics={},
        protocol="",
        extra=extra,
        versions={},
    )
