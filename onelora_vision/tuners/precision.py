"""Trained parameters are kept in fp32 on bases of any precision: bf16 would round away most of an AdamW step."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import recursively_apply
from peft.tuners._buffer_dict import BufferDict
from torch import nn

TRAINED_DTYPE = torch.float32


def is_low_precision(tensor: torch.Tensor) -> bool:
    """Whether a floating-point tensor has less than 32 bits."""
    return tensor.is_floating_point() and tensor.element_size() < 4


class _KeepsPrecision(nn.Module):
    """Casting the model to half precision moves the tensors in here but keeps them in fp32."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        def keeping_precision(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            return tensor.to(changed.device) if is_low_precision(changed) else changed

        return super()._apply(keeping_precision, recurse)


class VectorDict(_KeepsPrecision, nn.ParameterDict):
    """Adapter parameters by adapter name, never below fp32.

    Args:
        start: the value at which the parameters change nothing. Parameters on the meta device get this value when
            ``to_empty`` allocates them.
    """

    def __init__(self, parameters: Any = None, start: float = 0.0) -> None:
        super().__init__(parameters)
        self.start = start

    def add(self, name: str, shape: Sequence[int], device: torch.device, *, noise: float = 0.0) -> None:
        """Create the parameter of an adapter at its start value or, with ``noise``, at random values around it."""
        values = torch.full(tuple(shape), self.start, device=device, dtype=TRAINED_DTYPE)
        if noise:
            values += noise * torch.randn_like(values)
        self[name] = nn.Parameter(values)

    def move(self, name: str, device: torch.device) -> None:
        """Move an adapter's parameter, unless it does not exist or has no values yet."""
        if name in self and not self[name].is_meta:
            vector = self[name]
            self[name] = vector.to(device, TRAINED_DTYPE if is_low_precision(vector) else vector.dtype)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        def with_values(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            return changed.fill_(self.start) if tensor.is_meta and not changed.is_meta else changed

        return super()._apply(with_values, recurse)


class CompressionDict(_KeepsPrecision, BufferDict):
    """Fixed vectors by compression key, never below fp32 or on the meta device; rebuilt instead of saved."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        for key in [key for key, vector in self.items() if vector.is_meta]:
            del self[key]
        return self


def train_in_float32(module: nn.Module) -> None:
    """Turn a half-precision module into an fp32 one that still takes and returns tensors of the original dtype.

    At common learning rates, rounding would lose the updates of bf16 parameters. fp32 modules are left unchanged.
    """
    low = [parameter.dtype for parameter in module.parameters() if is_low_precision(parameter)]
    if not low:
        return
    module.float()
    module.register_forward_pre_hook(_inputs_to_float32, with_kwargs=True)
    module.register_forward_hook(partial(_outputs_to, dtype=low[0]))


def _inputs_to_float32(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return recursively_apply(_cast, args, torch.float32), recursively_apply(_cast, kwargs, torch.float32)


def _outputs_to(module: nn.Module, args: tuple, output: Any, dtype: torch.dtype) -> Any:
    return recursively_apply(_cast, output, dtype)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
