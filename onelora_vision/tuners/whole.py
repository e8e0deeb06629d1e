"""Modules that an adapter trains and saves whole, with fp32 parameters on bases of any precision."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from accelerate.utils import concatenate, recursively_apply
from peft.utils import ModulesToSaveWrapper
from torch import nn

from onelora_vision.tuners.precision import train_in_float32


class WholeModule(ModulesToSaveWrapper):
    """PEFT's wrapper for modules that are trained whole, with three additions.

    * Mixed batches work for any module.
    * The trained copy of a half-precision module is kept in fp32 and computes in fp32 (see `train_in_float32`).
    * If the base is loaded after the adapter was added, untouched copies take over its values.
    """

    def init_modules(self, adapter_name: str, **kwargs: Any) -> None:
        super().init_modules(adapter_name, **kwargs)
        self._made: dict[str, tuple[list, list]] = {}  # by adapter: states of copy and original when the copy was made
        self.register_load_state_dict_post_hook(_follow_loaded_original)

    def update(self, adapter_name: str, **kwargs: Any) -> None:
        is_new = adapter_name not in self.modules_to_save
        super().update(adapter_name, **kwargs)
        if is_new:
            train_in_float32(self.modules_to_save[adapter_name])
            self._note(adapter_name)

    def _note(self, adapter_name: str) -> None:
        self._made[adapter_name] = (_state_of(self.modules_to_save[adapter_name]), _state_of(self.original_module))

    def _untouched(self) -> list[str]:
        """Adapters whose copies have neither been trained nor loaded."""
        copies = self.modules_to_save
        return [name for name, (state, _) in self._made.items() if name in copies and _state_of(copies[name]) == state]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        untouched = self._untouched()
        super()._apply(fn, recurse)
        for name in untouched:
            self._note(name)
        return self

    def _check_forward_args(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's check assumes a tensor as first argument; skip it for others, such as lists of feature maps."""
        if args and isinstance(args[0], torch.Tensor):
            super()._check_forward_args(*args, **kwargs)

    def _mixed_batch_forward(self, *args: Any, adapter_names: list[str], **kwargs: Any) -> Any:
        size = len(adapter_names)
        rows = {name: [i for i, n in enumerate(adapter_names) if n == name] for name in dict.fromkeys(adapter_names)}
        outputs, order = [], []
        for name, indices in rows.items():
            module = self.original_module
            if name in self.modules_to_save:
                module = self.modules_to_save[name]
            pick = partial(_rows_of, indices=indices, size=size)
            outputs.append(module(*recursively_apply(pick, args), **recursively_apply(pick, kwargs)))
            order += indices
        positions = sorted(range(size), key=order.__getitem__)
        return recursively_apply(partial(_rows_of, indices=positions, size=size), concatenate(outputs))


def _rows_of(tensor: torch.Tensor, indices: list[int], size: int) -> torch.Tensor:
    return tensor[indices] if tensor.ndim and len(tensor) == size else tensor


def _follow_loaded_original(wrapper: WholeModule, incompatible_keys: object) -> None:
    """After ``load_state_dict``: untouched copies take over the values of a newly loaded original."""
    original = wrapper.original_module
    for name in wrapper._untouched():
        if _state_of(original) != wrapper._made[name][1]:
            wrapper.modules_to_save[name].load_state_dict(original.state_dict())
            wrapper._note(name)


def _state_of(module: nn.Module) -> list[tuple[int, int]]:
    """Identity and number of in-place changes of each tensor."""
    return [(id(tensor), version_of(tensor)) for tensor in (*module.parameters(), *module.buffers())]


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor was changed in place; 0 for inference tensors, which do not count changes."""
    return 0 if tensor.is_inference() else tensor._version


@contextlib.contextmanager
def substituted(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replace the modules of the same names by ``modules`` for the duration of a block, with the adapter on or off.

    Args:
        model: with or without an adapter.
        modules: by full name in the model without an adapter. A module that is trained whole is replaced together with
            its copies; a module inside one is replaced in the original and in each copy.
    """
    former: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for name, module in modules.items():
            *path, attribute = name.split(".")
            holders = [model]
            for step in path:
                holders = [version for holder in holders for version in _versions(holder.get_submodule(step))]
            for holder in holders:
                former.append((holder, attribute, getattr(holder, attribute)))
                setattr(holder, attribute, module)
        yield
    finally:
        for holder, attribute, module in reversed(former):
            setattr(holder, attribute, module)


def _versions(module: nn.Module) -> list[nn.Module]:
    """The module itself; for one that is trained whole, the original and its copies."""
    if isinstance(module, ModulesToSaveWrapper):
        return [module.original_module, *module.modules_to_save.values()]
    return [module]
