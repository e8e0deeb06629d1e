"""Adapters as low-rank changes of the layers' weights, which is what the LoRA files of other tools hold."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import PeftConfig, convert_to_lora
from torch import Tensor, nn

from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.kinds import kind_of
from onelora_vision.adapters.layout import PREFIX, Layout
from onelora_vision.errors import InputError, listed, one_line
from onelora_vision.tuners.onelora.compression import turns
from onelora_vision.tuners.onelora.layer import compression_vector

_CONSTANT = 1e-6  # largest difference of A's values from their mean, relative to the mean
_NEGLIGIBLE = 1e-10  # fraction of a change's energy (its squared singular values) that a conversion may drop


@dataclass
class LowRank:
    """``W + up @ down`` and ``bias + shift``: down (r, k), up (d, r), shift (d,) or None."""

    down: Tensor
    up: Tensor
    shift: Tensor | None = None


def low_rank(adapter: Adapter, layout: Layout, base: nn.Module) -> dict[str, LowRank]:
    """Convert each adapted layer to a `LowRank`, for kinds that are low-rank changes (`kinds.Kind.low_rank`).

    Raises:
        InputError: a part of the adapter is not a low-rank change; the message names it.
    """
    kind = kind_of(adapter.config)
    if kind.low_rank is None:
        raise _not_plain(adapter)
    return kind.low_rank(adapter, layout, base)


def of_vectors(adapter: Adapter, layout: Layout, base: nn.Module) -> dict[str, LowRank]:
    """1LoRA without gamma: ``down`` holds the compression vectors, and each row of ``up`` has one nonzero value."""
    if adapter.config.use_scale:
        raise InputError(
            f"{adapter.path}: a LoRA cannot hold the gamma of {listed(list(layout.layers))}; export with --to merged"
        )
    changes = {module: _of_vectors(adapter.config, module, parts, base) for module, parts in layout.layers.items()}
    return _filled(changes)


def of_lora(adapter: Adapter, layout: Layout, base: nn.Module) -> dict[str, LowRank]:
    """LoRA with the same rank and scale in all layers, without DoRA's magnitudes."""
    config, factor = adapter.config, lora_scale(adapter.config)
    if config.use_dora or config.bias != "none" or config.rank_pattern or config.alpha_pattern:
        raise _not_plain(adapter)
    return {
        module: LowRank(
            parts["lora_A.weight"],
            parts["lora_B.weight"] * factor,
            parts["lora_B.bias"] * factor if "lora_B.bias" in parts else None,
        )
        for module, parts in layout.layers.items()
    }


def of_miss(adapter: Adapter, layout: Layout, base: nn.Module) -> dict[str, LowRank]:
    """MiSS: input i belongs to group ``i mod r``, and row j of the block (r, d) multiplies the sum of group j."""
    changes = {}
    for module, parts in layout.layers.items():
        block = parts["miss_block"]
        columns = torch.arange(_linear(base, module).in_features) % len(block)
        changes[module] = LowRank(torch.eye(len(block), dtype=block.dtype)[:, columns], block.t().contiguous())
    return changes


def of_conversion(adapter: Adapter, layout: Layout, base: nn.Module) -> dict[str, LowRank]:
    """Convert another method of PEFT with `peft.convert_to_lora`: the singular vectors of each layer's change.

    At most `_NEGLIGIBLE` of a change's energy is dropped, so a change of full rank becomes a LoRA of full rank. Layers
    of a lower rank are padded with zeros.
    """
    model = adapter.attach(base)
    try:
        _, tensors = convert_to_lora(model, 1 - _NEGLIGIBLE)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"{adapter.path}: PEFT cannot turn it into LoRA ({one_line(error)})") from error
    finally:
        model.base_model.unload()
    ends = ".lora_A.weight", ".lora_B.weight"
    modules = [key.removesuffix(ends[0]) for key in tensors if key.endswith(ends[0])]
    pairs = {module.removeprefix(PREFIX): [tensors[module + end] for end in ends] for module in modules}
    return _filled({module: LowRank(*pair) for module, pair in pairs.items()})


def _filled(changes: dict[str, LowRank]) -> dict[str, LowRank]:
    """Pad all changes with zeros to the largest rank."""
    rank = max((len(change.down) for change in changes.values()), default=0)
    return {module: _at_rank(change, rank) for module, change in changes.items()}


def _at_rank(change: LowRank, rank: int) -> LowRank:
    missing = rank - len(change.down)
    return LowRank(F.pad(change.down, (0, 0, 0, missing)), F.pad(change.up, (0, missing)), change.shift)


def lora_scale(config: PeftConfig) -> float:
    """The factor on B A: ``alpha / r``, or ``alpha / sqrt(r)`` (rsLoRA)."""
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)


def _not_plain(adapter: Adapter) -> InputError:
    name = kind_of(adapter.config).name
    return InputError(f"{adapter.path}: {name} as trained here is not a plain LoRA; export with --to merged")


def _linear(base: nn.Module, module: str) -> nn.Linear:
    try:
        return base.get_submodule(module)
    except AttributeError:
        raise InputError(f"the base has no layer {module}, which the adapter changes") from None


def _of_vectors(config, module: str, parts: dict[str, Tensor], base: nn.Module) -> LowRank:
    linear = _linear(base, module)
    like = next(iter(parts.values()))
    v = compression_vector(module, linear, config.compressed_by) if config.use_sum else None
    down = torch.ones(1, linear.in_features) if v is None else torch.atleast_2d(v)
    shift = parts.get("onelora_beta")
    if shift is not None and linear.bias is None:
        raise InputError(f"{module} has no bias in the base, so its beta has no place in a LoRA; use --to merged")
    b = parts.get("onelora_b")
    up = like.new_zeros(len(like), len(down)) if b is None else b[:, None] * turns(len(b), len(down)).to(b)
    return LowRank(down.to(like.dtype), up, shift)


def as_vectors(change: LowRank) -> tuple[Tensor, Tensor | None] | str:
    """b and beta of a change, or the reason why it is not 1LoRA."""
    down = change.down.double()
    if down.shape[0] != 1 or change.up.shape[1] != 1:
        return f"rank {down.shape[0]}"
    mean = down.mean()
    spread = ((down - mean).abs().max() / mean.abs().clamp_min(1e-30)).item()
    if not spread <= _CONSTANT:
        return f"A varies by {spread:.2g} of its mean"
    return (change.up[:, 0].double() * mean).float(), None if change.shift is None else change.shift.float()


def split_rows(change: LowRank, parts: int) -> list[LowRank]:
    """Split a change of joined layers of equal size (q, k, v) into the changes of its ``parts`` layers."""
    shifts = [None] * parts if change.shift is None else change.shift.chunk(parts)
    return [LowRank(change.down.clone(), up.clone(), shift) for up, shift in zip(change.up.chunk(parts), shifts)]


def join_rows(changes: list[LowRank]) -> LowRank:
    """Join changes into that of a layer with all their outputs. If all share one ``down``, the rank stays the same."""
    shifts = [change.shift for change in changes]
    shift = None if shifts[0] is None else torch.cat(shifts)
    if all(torch.equal(change.down, changes[0].down) for change in changes):
        return LowRank(changes[0].down, torch.cat([change.up for change in changes]), shift)
    down = torch.cat([change.down for change in changes])
    return LowRank(down, torch.block_diag(*[change.up for change in changes]), shift)
