"""An adapter's layers as low-rank changes of their weights, which is what other tools' LoRA files hold."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onelora_vision.adapters.algebra import lora_scale
from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.layout import LORA, ONELORA, Layout, kind_of
from onelora_vision.errors import InputError, listed
from onelora_vision.tuners.onelora.layer import compression_vector


@dataclass
class LowRank:
    """``W + up @ down`` and ``bias + shift``: down (r, k), up (d, r), shift (d,) or None."""

    down: Tensor
    up: Tensor
    shift: Tensor | None = None


def low_rank(adapter: Adapter, layout: Layout, base: nn.Module) -> dict[str, LowRank]:
    """Each adapted layer of a 1LoRA or LoRA adapter as a `LowRank`; 1LoRA's down is its compression vector.

    Raises:
        InputError: a part of the adapter is no low-rank change; the message lists it.
    """
    kind, config = kind_of(adapter.config), adapter.config
    if kind == ONELORA and config.use_scale:
        raise InputError(
            f"{adapter.path}: a LoRA cannot hold the gamma of {listed(list(layout.layers))}; export with --to merged"
        )
    is_even = not (getattr(config, "rank_pattern", None) or getattr(config, "alpha_pattern", None))
    if kind == LORA and not config.use_dora and config.bias == "none" and is_even:
        return {
            module: LowRank(
                parts["lora_A.weight"],
                parts["lora_B.weight"] * lora_scale(config),
                parts["lora_B.bias"] * lora_scale(config) if "lora_B.bias" in parts else None,
            )
            for module, parts in layout.layers.items()
        }
    if kind != ONELORA:
        raise InputError(f"{adapter.path}: {kind} as trained here is no plain LoRA; export with --to merged")
    return {module: _rank_one(config, module, parts, base) for module, parts in layout.layers.items()}


def _rank_one(config, module: str, parts: dict[str, Tensor], base: nn.Module) -> LowRank:
    try:
        linear = base.get_submodule(module)
    except AttributeError:
        raise InputError(f"the base has no layer {module}, which the adapter changes") from None
    like = next(iter(parts.values()))
    v = compression_vector(module, linear, config.compression, config.compression_seed) if config.use_sum else None
    down = torch.ones(1, linear.in_features, dtype=like.dtype) if v is None else v[None].to(like.dtype)
    shift = parts.get("onelora_beta")
    if shift is not None and linear.bias is None:
        raise InputError(f"{module} has no bias in the base, so its beta has no place in a LoRA; use --to merged")
    b = parts.get("onelora_b")
    up = torch.zeros(len(like), 1, dtype=like.dtype) if b is None else b[:, None].clone()
    return LowRank(down, up, shift)


def split_rows(change: LowRank, parts: int) -> list[LowRank]:
    """The changes of ``parts`` layers of one size whose outputs were joined (q, k, v)."""
    shifts = [None] * parts if change.shift is None else change.shift.chunk(parts)
    return [LowRank(change.down.clone(), up.clone(), shift) for up, shift in zip(change.up.chunk(parts), shifts)]


def join_rows(changes: list[LowRank]) -> LowRank:
    """The change of the layer that joins the outputs of several; the rank stays if all read the input alike."""
    shifts = [change.shift for change in changes]
    shift = None if shifts[0] is None else torch.cat(shifts)
    if all(torch.equal(change.down, changes[0].down) for change in changes):
        return LowRank(changes[0].down, torch.cat([change.up for change in changes]), shift)
    down = torch.cat([change.down for change in changes])
    return LowRank(down, torch.block_diag(*[change.up for change in changes]), shift)
