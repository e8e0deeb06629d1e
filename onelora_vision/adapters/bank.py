"""Many adapters of one base at once: each sample of a batch goes through its own adapter, or its own mixture.

A layer's feature sum ``sum_i x_i`` does not depend on the adapter, so a batch of different adapters costs one gathered
vector per sample, and the base's matrix product is shared. The vectors of N adapters are tables (N + 1, d); the last row
is the identity. `AdapterBank.use` gathers; forward only adds.
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from onelora_vision.adapters.algebra import belongs_to_classes
from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.layout import ONELORA, VECTOR_NAMES, kind_of, layout_of
from onelora_vision.errors import InputError, listed, nearest
from onelora_vision.tuners import hosts
from onelora_vision.tuners.base import BASE_ADAPTER
from onelora_vision.tuners.onelora.functional import compress, gathered_linear, plain_epilogue
from onelora_vision.tuners.onelora.layer import compression_vector


class Selection:
    """Which adapter each sample takes: ``ids`` (batch,), or ``weights`` (batch, N); neither is the base alone."""

    def __init__(self, ids: Tensor | None = None, weights: Tensor | None = None, tiled: bool = False):
        self.ids, self.weights, self.tiled = ids, weights, tiled

    @property
    def size(self) -> int | None:
        """Samples in a batch; None for the base alone."""
        given = self.weights if self.ids is None else self.ids
        return None if given is None else len(given)

    def repeats(self, batch: int) -> int:
        """How many copies of the selected samples a batch consists of."""
        if batch == self.size:
            return 1
        if self.tiled and self.size and batch % self.size == 0:
            return batch // self.size
        raise InputError(f"the bank is set for batches of {self.size} samples, but this one has {batch}")


class BankedLinear(nn.Module):
    """A frozen linear layer with a table of vectors per part: ``b`` (N + 1, d), ``beta``, ``gamma`` where any uses it."""

    def __init__(self, base_layer: nn.Linear, tables: Mapping[str, Tensor], v: Tensor | None):
        super().__init__()
        self.base_layer = base_layer
        self.selection = Selection()
        self.parts = tuple(tables)
        self.register_buffer("v", v, persistent=False)
        for part, table in tables.items():
            self.register_buffer(f"table_{part}", table, persistent=False)
            self.register_buffer(f"chosen_{part}", None, persistent=False)

    @torch.no_grad()
    def select(self, selection: Selection) -> None:
        """Gather the vectors of each sample, (batch, d)."""
        self.selection = selection
        for part in self.parts:
            table = getattr(self, f"table_{part}")
            if selection.size is None:
                setattr(self, f"chosen_{part}", None)
                continue
            if selection.ids is not None:
                rows = table[selection.ids]
            elif part == "gamma":
                rows = _mixed_gammas(selection.weights, table[:-1])
            else:
                rows = selection.weights @ table[:-1]
            _keep(self, f"chosen_{part}", rows)

    def forward(self, x: Tensor) -> Tensor:
        base = self.base_layer
        if self.selection.size is None:
            return base(x)
        repeats = self.selection.repeats(len(x))
        shape = (len(x), *[1] * (x.ndim - 2), base.out_features)
        b, beta, gamma = (
            chosen if chosen is None else (chosen if repeats == 1 else chosen.repeat(repeats, 1)).view(shape)
            for chosen in (getattr(self, f"chosen_{part}", None) for part in ("b", "beta", "gamma"))
        )
        if beta is None and gamma is None and hosts.is_plain_linear(base):
            return gathered_linear(x, base.weight, base.bias, b, self.v)
        return plain_epilogue(base(x), None if b is None else compress(x, self.v), gamma, beta, b)


def _mixed_gammas(weights: Tensor, table: Tensor) -> Tensor:
    """``prod_i (1 + w_i (gamma_i - 1))`` (batch, d), one sample at a time over the adapters that it uses."""
    rows = [
        (1 + row[used, None] * (table[used] - 1)).prod(0) for row, used in ((w, w.nonzero()[:, 0]) for w in weights)
    ]
    return torch.stack(rows)


def _keep(module: nn.Module, name: str, value: Tensor) -> None:
    """Write into the buffer that is there if it has the shape: a compiled forward need not be compiled again."""
    old = getattr(module, name)
    if old is not None and old.shape == value.shape:
        old.copy_(value)
    else:
        setattr(module, name, value)


class BankedModule(nn.Module):
    """A module that every adapter has its own copy of: a norm, a head, a label table.

    Label tables gather rows; norms and heads gather their parameters per sample; any other module runs once per
    adapter in the batch.
    """

    def __init__(self, original: nn.Module, values: list[dict[str, Tensor] | None], is_of_classes: bool):
        super().__init__()
        self.original, self.is_of_classes = original, is_of_classes
        self.selection = Selection()
        own = {key: value.detach() for key, value in original.state_dict().items()}
        # A module made for the adapters' classes says nothing about the base.
        self.values = [own if value is None else value for value in values] + [None if is_of_classes else own]

    def _apply(self, fn, recurse: bool = True):
        self.values = [v if v is None else {key: fn(t) for key, t in v.items()} for v in self.values]
        return super()._apply(fn, recurse)

    def select(self, selection: Selection) -> None:
        if selection.ids is not None and self.is_of_classes and bool((selection.ids == len(self.values) - 1).any()):
            raise InputError(f"{BASE_ADAPTER} cannot be chosen: the base has no classes of its own in this bank")
        self.selection = selection

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.selection.size is None:
            return self.original(*args, **kwargs)
        batch = next(len(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim)
        samples = self._values_of_samples() * self.selection.repeats(batch)
        if isinstance(self.original, nn.Embedding):
            return torch.stack([value["weight"][row] for value, row in zip(samples, args[0])])
        if isinstance(self.original, (nn.LayerNorm, nn.Linear)) and _are_alike(samples):
            return self._by_sample(args[0], samples)
        return self._by_adapter(args, kwargs, samples)

    def _by_adapter(self, args: tuple, kwargs: dict, samples: list[dict[str, Tensor]]) -> Any:
        """Any module: once per adapter in the batch, on its samples; the outputs are put back in order."""
        order, leaves, spec = [], [], None
        for value in {id(value): value for value in samples}.values():
            rows = [k for k, sample in enumerate(samples) if sample is value]
            pick = partial(_rows_of, rows=rows, size=len(samples))
            output = functional_call(self.original, value, *tree_map(pick, (args, kwargs)))
            found, spec = tree_flatten(output)
            leaves.append(found)
            order += rows
        back = torch.tensor(order).argsort()
        joined = [torch.cat(parts)[back] if isinstance(parts[0], Tensor) else parts[0] for parts in zip(*leaves)]
        return tree_unflatten(joined, spec)

    def _by_sample(self, x: Tensor, samples: list[dict[str, Tensor]]) -> Tensor:
        """A LayerNorm or Linear with parameters of its own for each sample."""
        stacked = {key: torch.stack([s[key] for s in samples]) for key in samples[0]}
        middle = [1] * (x.ndim - 2)
        bias = stacked["bias"].view(len(x), *middle, -1) if "bias" in stacked else 0
        if isinstance(self.original, nn.LayerNorm):
            normed = F.layer_norm(x, self.original.normalized_shape, None, None, self.original.eps)
            return (normed * stacked["weight"].view(len(x), *middle, -1) + bias).to(x.dtype)
        return (torch.einsum("b...k,bdk->b...d", x.to(stacked["weight"]), stacked["weight"]) + bias).to(x.dtype)

    def _values_of_samples(self) -> list[dict[str, Tensor]]:
        """The parameters that each selected sample takes."""
        if self.selection.ids is not None:
            return [self.values[k] for k in self.selection.ids.tolist()]
        if not _are_alike(self.values[:-1]):
            raise InputError("adapters with different numbers of classes cannot be mixed by weights")
        return [self._mixture(weights) for weights in self.selection.weights.tolist()]

    def _mixture(self, weights: list[float]) -> dict[str, Tensor]:
        """The same sum as `algebra.blend`'s for modules saved whole."""
        total = sum(weights)
        if self.is_of_classes:
            if abs(total) < 1e-6:
                raise InputError("heads and label tables cannot be mixed with weights that sum to 0")
            weights, total = [weight / total for weight in weights], 1.0
        terms = [(w, value) for w, value in zip(weights, self.values) if w]
        if self.values[-1] is not None:
            terms.append((1 - total, self.values[-1]))
        return {key: sum(w * value[key].float() for w, value in terms) for key in self.values[0]}


def _rows_of(leaf: Any, rows: list[int], size: int) -> Any:
    return leaf[rows] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size else leaf


def _are_alike(values: Sequence[dict[str, Tensor]]) -> bool:
    shapes = [{key: tensor.shape for key, tensor in value.items()} for value in values]
    return all(shape == shapes[0] for shape in shapes)


class AdapterBank(nn.Module):
    """A base model with N adapters of the 1LoRA family, of which each sample of a batch takes its own.

    >>> bank = AdapterBank(model, {"pie": read_adapter("pie"), "sushi": read_adapter("sushi")})
    >>> bank.use(["pie", "sushi", "__base__"])  # or numbers, or a weight per sample and adapter (3, 2)
    >>> bank(x)  # x has 3 samples

    Args:
        model: the base, fitted to the adapters (`adapters.bases.load_base`); its layers are replaced in place.
        adapters: by name.

    Raises:
        InputError: an adapter of another base, another method, or that does not fit; the model is left as it was.
    """

    def __init__(self, model: nn.Module, adapters: Mapping[str, Adapter]):
        super().__init__()
        self.names = list(adapters)
        summing = _check_alike(adapters)
        layouts = [layout_of(a.config, a.tensors, str(a.path)) for a in adapters.values()]
        self._layers = list(dict.fromkeys(m for layout in layouts for m in layout.layers))
        self._whole = list(dict.fromkeys(m for layout in layouts for m in layout.whole))
        self._parts = {p for layout in layouts for parts in layout.layers.values() for p in parts}
        for name in (*self._layers, *self._whole):
            _module(model, name)
        hosts.check_adaptable(model, self._layers)
        hosts.check_trainable_whole(model, self._whole)
        banked = {name: self._linear(model, name, layouts, summing) for name in self._layers}
        for name in self._whole:
            original = model.get_submodule(name)
            values = [layout.whole.get(name) for layout in layouts]
            classes = [
                belongs_to_classes(value, a.info.class_names) for value, a in zip(values, adapters.values()) if value
            ]
            if any(classes) and None in values:
                raise InputError(f"{name}, made for an adapter's classes, is not in every adapter of the bank")
            device = next(iter(original.parameters())).device
            values = [v if v is None else {key: t.to(device) for key, t in v.items()} for v in values]
            banked[name] = BankedModule(original, values, any(classes))
        for name, module in banked.items():
            model.set_submodule(name, module)
        hosts.call_adapted_layers(model, (BankedLinear, BankedModule))
        self.model = model

    def _linear(self, model: nn.Module, name: str, layouts: Sequence, summing: Adapter | None) -> BankedLinear:
        linear = model.get_submodule(name)
        device, tables = hosts.device_of(linear), {}
        for key in sorted(self._parts):
            start = 1.0 if key == "onelora_gamma" else 0.0
            table = torch.full((len(layouts) + 1, linear.out_features), start, device=device)
            for row, layout in enumerate(layouts):
                vector = layout.layers.get(name, {}).get(key)
                if vector is not None:
                    _check_width(name, vector, linear)
                    table[row] = vector.to(table)
            tables[VECTOR_NAMES[key]] = table
        v = None
        if summing is not None:
            v = compression_vector(name, linear, summing.config.compression, summing.config.compression_seed)
        return BankedLinear(linear, tables, v)

    def use(self, choice: Sequence[int | str | None] | Tensor | None, *, tiled: bool = False) -> None:
        """Choose for the batches that follow.

        Args:
            choice: per sample the name or number of an adapter (``"__base__"``, None or -1 for none); or a float
                tensor (batch, N) of weights, by the formula of `algebra.blend`; or None: the base for all.
            tiled: batches may be several copies of the chosen samples one after another, as classifier-free guidance
                makes them.

        Raises:
            InputError: an unknown name, a number out of range, weights of another shape.
        """
        selection = self._selection(choice, tiled)
        for name in [*self._whole, *self._layers]:  # whole modules refuse what they cannot do before anything changes
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
        """Put another adapter in the place of ``name``: one copy per vector, nothing is injected or compiled again.

        Raises:
            InputError: it is not like those of the bank; the bank is left as it was.
        """
        row = self._number(name)
        if row == len(self.names):
            raise InputError(f"{BASE_ADAPTER} is the base itself and cannot be replaced")
        layout = layout_of(adapter.config, adapter.tensors, str(adapter.path))
        parts = {part for tensors in layout.layers.values() for part in tensors}
        foreign = sorted(set(layout.layers) - set(self._layers)) + sorted(parts - self._parts)
        if foreign or set(layout.whole) != set(self._whole) or kind_of(adapter.config) != ONELORA:
            raise InputError(f"{adapter.path}: has other layers than this bank ({listed(foreign) or 'saved whole'})")
        for module in self._layers:
            for vector in layout.layers.get(module, {}).values():
                _check_width(module, vector, self.model.get_submodule(module).base_layer)
        for module in self._layers:
            for key in self._parts:
                table = getattr(self.model.get_submodule(module), f"table_{VECTOR_NAMES[key]}")
                vector = layout.layers.get(module, {}).get(key)
                table[row] = table[-1] if vector is None else vector.to(table)
        for module, values in layout.whole.items():
            banked = self.model.get_submodule(module)
            like = next(t for value in banked.values if value for t in value.values())
            banked.values[row] = {key: t.to(like.device) for key, t in values.items()}
        self.use(*self._choice[:1], tiled=self._choice[1])

    def forward(self, *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """The model's own forward; ``adapter_names``, as PEFT has them, choose for this call alone."""
        if adapter_names is None:
            return self.model(*args, **kwargs)
        with self.using(adapter_names):
            return self.model(*args, **kwargs)

    @contextmanager
    def using(self, choice: Any, *, tiled: bool = False):
        """`use` for the length of a block."""
        before = self._choice
        self.use(choice, tiled=tiled)
        try:
            yield self
        finally:
            self.use(before[0], tiled=before[1])

    _choice: tuple[Any, bool] = (None, False)


def swap(model: PeftModel, adapter: Adapter, adapter_name: str = "default") -> None:
    """Overwrite an adapter of a PeftModel with another of the same layers: one copy per tensor, no re-injection.

    Raises:
        InputError: layers, shapes or compression differ; nothing is changed.
    """
    config = model.peft_config.get(adapter_name)
    if config is None:
        raise InputError(f"the model has no adapter {adapter_name!r}{nearest(adapter_name, model.peft_config)}")
    for field in ("peft_type", "compression_key", "mora_type", "r", "lora_alpha"):
        mine, other = getattr(config, field, None), getattr(adapter.config, field, None)
        if mine != other:
            name = field.removesuffix("_key")
            raise InputError(f"{adapter.path}: its {name} is {other!r}, that of the adapter to replace {mine!r}")
    places = _own_parameters(model, adapter_name)
    if _shapes(places) != _shapes(adapter.tensors):  # VeRA's buffers, DoRA's names, or it does not fit: this says how
        places = adapter.check_fits(model, adapter_name)
    with torch.no_grad():
        torch._foreach_copy_([places[key] for key in adapter.tensors], list(adapter.tensors.values()))


def _own_parameters(model: PeftModel, adapter_name: str) -> dict[str, Tensor]:
    """An adapter's parameters by the names of its file; PEFT's own way to them costs more than all the copies."""
    inner, whole = f".{adapter_name}", f".modules_to_save.{adapter_name}."
    found = {}
    for name, parameter in model.named_parameters():
        if name.endswith(inner):
            found[name.removesuffix(inner)] = parameter
        elif whole in name:
            found[name.replace(whole, ".")] = parameter
        elif f"{inner}." in name:  # as lora_A.default.weight
            found[name.replace(f"{inner}.", ".")] = parameter
    return found


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in tensors.items()}


def _check_alike(adapters: Mapping[str, Adapter]) -> Adapter | None:
    """Refuse what a bank cannot hold together; returns one of those with b, whose compression is that of all of them."""
    if not adapters:
        raise InputError("a bank needs at least one adapter")
    first = next(iter(adapters.values()))
    for name, adapter in adapters.items():
        if name == BASE_ADAPTER:
            raise InputError(f"an adapter of a bank cannot be called {BASE_ADAPTER}")
        if kind_of(adapter.config) != ONELORA:
            raise InputError(
                f"{adapter.path}: a bank holds adapters of the 1LoRA family, not {kind_of(adapter.config)}"
            )
        if adapter.info.method == "full":
            raise InputError(f"{adapter.path}: trained in full, a model of its own; a bank shares the base")
        if adapter.info.base_fingerprint != first.info.base_fingerprint:
            raise InputError(f"{adapter.path}: trained on another base than {first.path}; a bank has one base")
    summing = [adapter for adapter in adapters.values() if adapter.config.use_sum]
    for adapter in summing:
        one, other = summing[0].config.compression_key, adapter.config.compression_key
        if one != other:
            raise InputError(f"{adapter.path}: compression {other} is not that of {summing[0].path}, {one}")
    return summing[0] if summing else None


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise InputError(f"the model has no module {name}, which an adapter of the bank changes") from None


def _check_width(name: str, vector: Tensor, linear: nn.Linear) -> None:
    if vector.shape != (linear.out_features,):
        raise InputError(f"{name} has {linear.out_features} outputs, the adapter {tuple(vector.shape)} values")
