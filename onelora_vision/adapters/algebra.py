"""Exact algebra of adapter files: weighted sums, differences, averages and negations, each an adapter again.

An adapter with weight w contributes ``w b``, ``w beta`` and ``1 + w (gamma - 1)``. The b's and betas of several
adapters are added, their gammas multiplied. The layers do the same with several active adapters
(`tuners.onelora.vectors.compose`), so a ``blend`` file is equivalent to activating all adapters with those weights. For
b and beta, it is the sum of the adapters' changes. MoRA matrices are added in the same way; the rank of a sum of LoRAs
is the sum of their ranks.

Modules saved whole hold values P instead of changes. With the base's values P0, the sum is
``P0 + sum w_i (P_i - P0)``, so either the weights sum to 1 or the base is needed. Heads and label tables belong to the
adapter's own classes and have no P0. They are interpolated: ``sum w_i P_i / sum w_i``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.adapters.kinds import KINDS, kind_of
from onelora_vision.adapters.layout import Layout, layout_of
from onelora_vision.adapters.sums import Term, union
from onelora_vision.backbones.table import all_rows
from onelora_vision.errors import InputError
from onelora_vision.tuners.matching import exact_pattern

_UNIT = 1e-6  # how far a sum of weights may be from 1 (or 0)


def blend(
    terms: Sequence[tuple[Adapter, float]],
    *,
    blocks: Mapping[int, float] | None = None,
    base: nn.Module | None = None,
    whole_from: Adapter | None = None,
) -> Adapter:
    """Sum adapters of one base with weights. The result is an adapter of the same size (for LoRA, the ranks add up).

    Args:
        terms: adapters and their weights, which may be negative.
        blocks: block number -> factor on all weights in that block.
        base: the base model fitted to the adapters (`adapters.bases.load_base`). Only needed if modules saved whole
            need its values.
        whole_from: one of the adapters; its modules saved whole are used instead of a sum.

    Raises:
        InputError: the adapters differ in base, method, compression, classes or settings, or their sum is not an
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
    config, layers = kind_of(items[0].adapter.config).sum(items, layouts)
    result = Layout(layers, _whole_modules(items, layouts, base, whole_from))
    config.target_modules = exact_pattern(layers) if layers else items[0].adapter.config.target_modules
    config.modules_to_save = list(result.whole) or None
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    return Adapter(config, result.to_tensors(), _info(items), Path("blend"))


def _settings_of(task: str) -> list[str]:
    """Names of the header settings that decide what the base looks like, over all families of the task."""
    families = [row.base_class() for row in all_rows() if row.task == task]
    names = {name for family in families for name in (*family.load_settings, *family.fit_settings)}
    return sorted({*names, "preprocessing"})


def scale(adapter: Adapter, weight: float, **options) -> Adapter:
    """Multiply an adapter by ``weight``."""
    return blend([(adapter, weight)], **options)


def negate(adapter: Adapter, **options) -> Adapter:
    """Reverse an adapter: ``-b``, ``-beta`` and ``2 - gamma``."""
    return blend([(adapter, -1.0)], **options)


def difference(first: Adapter, second: Adapter, **options) -> Adapter:
    """Subtract ``second`` from ``first``."""
    return blend([(first, 1.0), (second, -1.0)], **options)


def average(adapters: Sequence[Adapter], **options) -> Adapter:
    """Average adapters, for instance the checkpoints of one run."""
    return blend([(adapter, 1 / len(adapters)) for adapter in adapters], **options)


def _check_alike(items: Sequence[Term]) -> None:
    first = items[0].adapter
    kind = kind_of(first.config)
    if kind.sum is None:
        summable = ", ".join(other.name for other in KINDS.values() if other.sum)
        raise InputError(
            f"{first.path}: a weighted sum of {kind.name} adapters is not a {kind.name} adapter "
            f"(supported: {summable}); merge them into the base instead"
        )
    for item in items[1:]:
        other = item.adapter
        where = f"{first.path} and {other.path} do not blend"
        if kind_of(other.config) != kind:
            raise InputError(f"{where}: one is {kind.name}, the other {kind_of(other.config).name}")
        _check_same_base(first.info, other.info, where)
        if first.info.task != other.info.task:
            raise InputError(f"{where}: one is for {first.info.task!r}, the other for {other.info.task!r}")
        if first.info.class_names != other.info.class_names:
            raise InputError(f"{where}: {_classes_differ(first.info.class_names, other.info.class_names)}")
        trained = [info.extra.get("objective") for info in (first.info, other.info)]
        if all(trained) and trained[0] != trained[1]:
            raise InputError(f"{where}: one was trained to predict {trained[0]}, the other {trained[1]}")
        for key in _settings_of(first.info.task):
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
        raise InputError(
            f"{where}: their bases are {first.base!r} and {other.base!r}, and their fingerprints cannot be compared"
        )


def _classes_differ(first: list[str] | None, second: list[str] | None) -> str:
    if not first or not second or len(first) != len(second):
        return f"one has {len(first or [])} classes, the other {len(second or [])}"
    at = next(k for k, (a, b) in enumerate(zip(first, second)) if a != b)
    return f"class {at} is {first[at]!r} in one and {second[at]!r} in the other"


def _whole_modules(
    items: Sequence[Term], layouts: Sequence[Layout], base: nn.Module | None, whole_from: Adapter | None
) -> dict[str, dict[str, Tensor]]:
    if whole_from is not None:
        chosen = [layout for item, layout in zip(items, layouts) if item.adapter is whole_from]
        if not chosen:
            raise InputError(f"{whole_from.path}: whole_from must be one of the blended adapters")
        return chosen[0].whole
    return {
        module: _sum_of_whole(module, items, layouts, base) for module in union(layout.whole for layout in layouts)
    }


def _sum_of_whole(
    module: str, items: Sequence[Term], layouts: Sequence[Layout], base: nn.Module | None
) -> dict[str, Tensor]:
    """Sum one module saved whole: interpolate it if it belongs to the classes, else sum around the base's values."""
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
    """Whether a module has one row per class (a head), or one additional row for "no class" (a label table)."""
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
    """The header of the result: what the sources have in common, and the recipe, without metrics."""
    first = items[0].adapter.info
    methods = list(dict.fromkeys(item.adapter.info.method for item in items))
    recipe = [
        {"adapter": item.adapter.path.name, "weight": item.weight, "method": item.adapter.info.method}
        for item in items
    ]
    extra = {key: value for key, value in first.extra.items() if key != "retention"} | {"blend": recipe}
    if distilled := [value for item in items if (value := item.adapter.info.guidance_distillation)]:
        extra["training"] = {**first.extra.get("training", {}), "guidance_distillation": max(distilled)}
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
