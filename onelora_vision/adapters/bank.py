"""Many adapters on one base at once: each sample of a batch uses its own adapter or mixture of adapters.

A layer's feature sum ``sum_i x_i`` does not depend on the adapter. A batch with different adapters therefore costs one
gathered vector per sample, and shares the base's matrix product. The layers of a bank are in `banked`.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from onelora_vision.adapters.algebra import belongs_to_classes
from onelora_vision.adapters.banked import BankedLinear, BankedModule, Selection
from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.kinds import kind_of
from onelora_vision.adapters.layout import Layout, layout_of
from onelora_vision.errors import InputError, listed, nearest
from onelora_vision.tuners import hosts, shortcuts
from onelora_vision.tuners.layer import BASE_ADAPTER
from onelora_vision.tuners.onelora.layer import compression_vector


class AdapterBank(nn.Module):
    """A base model with N adapters of the 1LoRA family, chosen per sample.

    >>> bank = AdapterBank(model, {"pie": read_adapter("pie"), "sushi": read_adapter("sushi")})
    >>> bank.use(["pie", "sushi", "__base__"])  # or numbers, or a weight per sample and adapter (3, 2)
    >>> bank(x)  # x has 3 samples

    Args:
        model: the base, fitted to the adapters (`adapters.bases.load_base`); its layers are replaced in place.
        adapters: adapters by name.

    Raises:
        InputError: an adapter belongs to another base or another method, or does not fit; the model is left unchanged.
    """

    def __init__(self, model: nn.Module, adapters: Mapping[str, Adapter]):
        super().__init__()
        self._choice: tuple[Any, bool] = (None, False)  # what `use` was called with
        self.names = list(adapters)
        summing = _check_alike(adapters)
        layouts = [layout_of(a.config, a.tensors, str(a.path)) for a in adapters.values()]
        self._layers = list(dict.fromkeys(m for layout in layouts for m in layout.layers))
        self._whole = list(dict.fromkeys(m for layout in layouts for m in layout.whole))
        self._parts = {p for layout in layouts for parts in layout.layers.values() for p in parts}
        self._kind = kind_of(next(iter(adapters.values())).config)
        for name in (*self._layers, *self._whole):
            _module(model, name)
        hosts.check_adaptable(model, self._layers)
        hosts.check_trainable_whole(model, self._whole)
        banked = {name: self._linear(model, name, layouts, summing) for name in self._layers}
        for name in self._whole:
            banked[name] = _banked_module(model.get_submodule(name), name, layouts, adapters.values())
        for name, module in banked.items():
            model.set_submodule(name, module)
        shortcuts.call_adapted_layers(model, (BankedLinear, BankedModule))
        self.model = model

    def _linear(self, model: nn.Module, name: str, layouts: Sequence[Layout], summing: Adapter | None) -> BankedLinear:
        linear = model.get_submodule(name)
        device, tables = hosts.device_of(linear), {}
        kind = self._kind
        for key in sorted(self._parts):
            table = torch.full((len(layouts) + 1, linear.out_features), kind.neutral(key), device=device)
            for row, layout in enumerate(layouts):
                vector = layout.layers.get(name, {}).get(key)
                if vector is not None:
                    _check_width(name, vector, linear)
                    table[row] = vector.to(table)
            tables[self._kind.vectors[key]] = table
        v = None
        if summing is not None:
            v = compression_vector(name, linear, summing.config.compressed_by)
        return BankedLinear(linear, tables, v)

    def use(self, choice: Sequence[int | str | None] | Tensor | None, *, tiled: bool = False) -> None:
        """Choose the adapters for the following batches.

        Args:
            choice: the name or number of an adapter for each sample (``"__base__"``, None or -1 for the base alone);
                or a float tensor (batch, N) of weights, applied as in `algebra.blend`; or None to use the base for all.
            tiled: whether batches may consist of several consecutive copies of the chosen samples, as in
                classifier-free guidance.

        Raises:
            InputError: a name is unknown, a number is out of range, or the weights have the wrong shape.
        """
        selection = self._selection(choice, tiled)
        for name in [*self._whole, *self._layers]:  # whole modules first: they raise before anything changes
            self.model.get_submodule(name).select(selection)
        self._choice = (choice, tiled)

    def _selection(self, choice: Any, tiled: bool) -> Selection:
        if choice is None:
            return Selection()
        device = next(self.model.parameters()).device
        if isinstance(choice, Tensor) and choice.is_floating_point():
            if choice.ndim != 2 or choice.shape[1] != len(self.names):
                raise InputError(f"weights have shape {tuple(choice.shape)}, expected (batch, {len(self.names)})")
            return Selection(weights=choice.to(device, torch.float32), tiled=tiled)
        ids = [self._number(entry) for entry in (choice.tolist() if isinstance(choice, Tensor) else choice)]
        return Selection(ids=torch.tensor(ids, device=device), tiled=tiled)

    def _number(self, entry: int | str | None) -> int:
        if entry is None or entry == BASE_ADAPTER or entry == -1:
            return len(self.names)
        if isinstance(entry, str):
            if entry not in self.names:
                raise InputError(f"no adapter {entry!r} in the bank{nearest(entry, self.names, 'adapter')}")
            return self.names.index(entry)
        if not 0 <= entry < len(self.names):
            raise InputError(f"no adapter number {entry} in a bank of {len(self.names)}")
        return int(entry)

    @torch.no_grad()
    def load(self, name: str, adapter: Adapter) -> None:
        """Replace the adapter ``name``: one copy per vector, without injecting or compiling anything again.

        Raises:
            InputError: the adapter does not match the bank, which is left unchanged.
        """
        row = self._number(name)
        if row == len(self.names):
            raise InputError(f"{BASE_ADAPTER} is the base itself and cannot be replaced")
        layout = layout_of(adapter.config, adapter.tensors, str(adapter.path))
        parts = {part for tensors in layout.layers.values() for part in tensors}
        foreign = sorted(set(layout.layers) - set(self._layers)) + sorted(parts - self._parts)
        if foreign or set(layout.whole) != set(self._whole) or not kind_of(adapter.config).vectors:
            raise InputError(f"{adapter.path}: has other layers than this bank ({listed(foreign) or 'saved whole'})")
        for module in self._layers:
            for vector in layout.layers.get(module, {}).values():
                _check_width(module, vector, self.model.get_submodule(module).base_layer)
        for module in self._layers:
            for key in self._parts:
                table = getattr(self.model.get_submodule(module), f"table_{self._kind.vectors[key]}")
                vector = layout.layers.get(module, {}).get(key)
                table[row] = table[-1] if vector is None else vector.to(table)
        for module, values in layout.whole.items():
            banked = self.model.get_submodule(module)
            like = next(t for value in banked.values if value for t in value.values())
            banked.values[row] = {key: t.to(like.device) for key, t in values.items()}
        self.use(*self._choice[:1], tiled=self._choice[1])

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Call the model. ``adapter_names``, as in PEFT, apply to this call only."""
        if adapter_names is None:
            return self.model(*args, **kwargs)
        with self.using(adapter_names):
            return self.model(*args, **kwargs)

    @contextmanager
    def using(self, choice: Any, *, tiled: bool = False):
        """Context manager that applies `use` within its block."""
        before = self._choice
        self.use(choice, tiled=tiled)
        try:
            yield self
        finally:
            self.use(before[0], tiled=before[1])


def _check_alike(adapters: Mapping[str, Adapter]) -> Adapter | None:
    """Raise if the adapters cannot share a bank. Return one that has b (they all use the same compression), or None."""
    if not adapters:
        raise InputError("a bank needs at least one adapter")
    first = next(iter(adapters.values()))
    for name, adapter in adapters.items():
        if name == BASE_ADAPTER:
            raise InputError(f"an adapter of a bank cannot be called {BASE_ADAPTER}")
        kind = kind_of(adapter.config)
        if not kind.vectors:
            raise InputError(f"{adapter.path}: a bank holds adapters of the 1LoRA family, not {kind.name}")
        if adapter.info.method == "full":
            raise InputError(f"{adapter.path}: trained in full, so it does not share its base with other adapters")
        if adapter.info.base_fingerprint != first.info.base_fingerprint:
            raise InputError(f"{adapter.path}: trained on another base than {first.path}; a bank has one base")
    summing = [adapter for adapter in adapters.values() if adapter.config.use_sum]
    for adapter in summing:
        one, other = summing[0].config.compression_key, adapter.config.compression_key
        if one != other:
            raise InputError(f"{adapter.path}: its compression is {other}, but {summing[0].path} has {one}")
    return summing[0] if summing else None


def _banked_module(
    original: nn.Module, name: str, layouts: Sequence[Layout], adapters: Iterable[Adapter]
) -> BankedModule:
    """Make a `BankedModule` for a module that at least one adapter saves whole."""
    values = [layout.whole.get(name) for layout in layouts]
    classes = [belongs_to_classes(value, a.info.class_names) for value, a in zip(values, adapters) if value]
    if any(classes) and None in values:
        raise InputError(f"{name}, made for an adapter's classes, is not in every adapter of the bank")
    device = next(iter(original.parameters())).device
    values = [v if v is None else {key: t.to(device) for key, t in v.items()} for v in values]
    return BankedModule(original, values, any(classes))


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise InputError(f"the model has no module {name}, which an adapter of the bank changes") from None


def _check_width(name: str, vector: Tensor, linear: nn.Linear) -> None:
    if vector.shape != (linear.out_features,):
        raise InputError(f"{name} has {linear.out_features} outputs, the adapter {tuple(vector.shape)} values")
