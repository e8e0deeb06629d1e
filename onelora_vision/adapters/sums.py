"""Weighted sums of adapters' layers, for each kind whose sums are of the same kind (`kinds.Kind.sum`)."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from peft import PeftConfig
from torch import Tensor

from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.kinds import kind_of
from onelora_vision.adapters.layout import Layout, block_of
from onelora_vision.adapters.lowrank import lora_scale
from onelora_vision.errors import InputError, listed
from onelora_vision.tuners.onelora.vectors import Vectors, compose


@dataclass
class Term:
    """An adapter with its weight in a sum. ``blocks`` maps block numbers to factors on that weight."""

    adapter: Adapter
    weight: float
    blocks: Mapping[int, float] = field(default_factory=dict)

    def weight_in(self, module: str) -> float:
        """The weight for one module of the model."""
        return self.weight * self.blocks.get(block_of(module), 1.0)


def sum_of_vectors(items: Sequence[Term], layouts: Sequence[Layout]) -> tuple[PeftConfig, dict]:
    """The 1LoRA family: any mixture of b, beta and gamma. Parts that an adapter lacks are neutral."""
    summing = [i.adapter for i in items if i.adapter.config.use_sum]
    for other in summing[1:]:
        a, b = summing[0].config.compression_key, other.config.compression_key
        if a != b:
            raise InputError(
                f"{summing[0].path} and {other.path} do not blend: b multiplies different compressions of the input, "
                f"{a} and {b}"
            )
    kind = kind_of(items[0].adapter.config)
    fields = kind.vectors
    names = [name for name in fields if any(name in parts for layout in layouts for parts in layout.layers.values())]
    layers = {}
    for module in union(layout.layers for layout in layouts):
        present = [(i, layout.layers[module]) for i, layout in zip(items, layouts) if module in layout.layers]
        _check_shapes(module, present)
        vectors = [Vectors(**{fields[name]: t.double() for name, t in parts.items()}) for _, parts in present]
        (total,) = compose(vectors, [item.weight_in(module) for item, _ in present])
        like = next(iter(present[0][1].values()))
        layers[module] = {}
        for name in names:
            value = getattr(total, fields[name])
            layers[module][name] = torch.full_like(like, kind.neutral(name)) if value is None else value.to(like.dtype)
    config = copy.deepcopy((summing or [items[0].adapter])[0].config)
    for name, part in kind.parts.items():
        setattr(config, part.option, name in names)
    return config, layers


def sum_of_matrices(items: Sequence[Term], layouts: Sequence[Layout]) -> tuple[PeftConfig, dict]:
    """MoRA of one type and MiSS of one rank: a layer's change is linear in its single matrix."""
    kind = kind_of(items[0].adapter.config)
    (part,), (setting,) = kind.parts, kind.settings
    values = {getattr(item.adapter.config, setting) for item in items}
    if len(values) > 1:
        raise InputError(
            f"{kind.title} adapters with {setting} {listed(map(str, sorted(values)))} do not blend: their matrices mean "
            "different things"
        )
    layers = {}
    for module in union(layout.layers for layout in layouts):
        present = [(i, layout.layers[module]) for i, layout in zip(items, layouts) if module in layout.layers]
        _check_shapes(module, present)
        total = sum(item.weight_in(module) * parts[part].double() for item, parts in present)
        layers[module] = {part: total.to(present[0][1][part].dtype)}
    return copy.deepcopy(items[0].adapter.config), layers


def sum_of_ranks(items: Sequence[Term], layouts: Sequence[Layout]) -> tuple[PeftConfig, dict]:
    """LoRA: ``sum w_i s_i B_i A_i`` is the product of the concatenated matrices, with weights and scales put into B."""
    for item in items:
        _check_plain_lora(item.adapter)
    layers = {}
    ranks = [item.adapter.config.r for item in items]
    for module in union(layout.layers for layout in layouts):
        downs, ups = [], []
        like = next(layout.layers[module] for layout in layouts if module in layout.layers)
        for item, layout, rank in zip(items, layouts, ranks):
            parts = layout.layers.get(module)
            if parts is None:  # PEFT uses one rank for all layers
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


def _check_shapes(module: str, present: Sequence[tuple[Term, dict[str, Tensor]]]) -> None:
    shapes = {tuple(tensor.shape) for _, parts in present for tensor in parts.values()}
    if len(shapes) > 1:
        paths = " and ".join(str(item.adapter.path) for item, _ in present)
        raise InputError(f"{paths} do not blend: {module} has shapes {sorted(shapes)}")


def union(mappings) -> list[str]:
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))
