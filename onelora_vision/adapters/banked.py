"""The layers of an `AdapterBank`: each holds the parameters of every adapter and applies the right ones per sample.

The vectors of N adapters form tables (N + 1, d), whose last row is the identity. `select` gathers rows, so the forward
pass only adds them.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from onelora_vision.errors import InputError
from onelora_vision.tuners import hosts
from onelora_vision.tuners.layer import BASE_ADAPTER
from onelora_vision.tuners.onelora.compression import compress
from onelora_vision.tuners.onelora.operator import gathered_linear, plain_epilogue


class Selection:
    """The adapter of each sample: ``ids`` (batch,) or ``weights`` (batch, N). Without either, only the base is used."""

    def __init__(self, ids: Tensor | None = None, weights: Tensor | None = None, tiled: bool = False):
        self.ids, self.weights, self.tiled = ids, weights, tiled

    @property
    def size(self) -> int | None:
        """The number of samples in a batch; None for the base alone."""
        given = self.weights if self.ids is None else self.ids
        return None if given is None else len(given)

    def repeats(self, batch: int) -> int:
        """Return how many copies of the selected samples make up a batch.

        Raises:
            InputError: the batch is not made up of copies.
        """
        if batch == self.size:
            return 1
        if self.tiled and self.size and batch % self.size == 0:
            return batch // self.size
        raise InputError(f"the bank is set for batches of {self.size} samples, but this one has {batch}")


class BankedLinear(nn.Module):
    """A frozen linear layer with a table (N + 1, d) for each of ``b``, ``beta`` and ``gamma`` that an adapter uses."""

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
    """Compute ``prod_i (1 + w_i (gamma_i - 1))`` (batch, d), sample by sample, over the adapters that each uses."""
    rows = [
        (1 + row[used, None] * (table[used] - 1)).prod(0) for row, used in ((w, w.nonzero()[:, 0]) for w in weights)
    ]
    return torch.stack(rows)


def _keep(module: nn.Module, name: str, value: Tensor) -> None:
    """Set a buffer, in place if the shape stays the same, so a compiled forward is not recompiled."""
    old = getattr(module, name)
    if old is not None and old.shape == value.shape:
        old.copy_(value)
    else:
        setattr(module, name, value)


class BankedModule(nn.Module):
    """A module of which each adapter has its own copy: a norm, a head, a label table.

    Label tables gather rows, norms and heads gather their parameters per sample, and any other module runs once for
    each adapter in the batch.
    """

    def __init__(self, original: nn.Module, values: list[dict[str, Tensor] | None], is_of_classes: bool):
        super().__init__()
        self.original, self.is_of_classes = original, is_of_classes
        self.selection = Selection()
        own = {key: value.detach() for key, value in original.state_dict().items()}
        # A module made for the adapters' classes has no counterpart in the base.
        self.values = [own if value is None else value for value in values] + [None if is_of_classes else own]

    def _apply(self, fn, recurse: bool = True):
        self.values = [v if v is None else {key: fn(t) for key, t in v.items()} for v in self.values]
        return super()._apply(fn, recurse)

    def select(self, selection: Selection) -> None:
        if selection.ids is not None and self.is_of_classes and bool((selection.ids == len(self.values) - 1).any()):
            raise InputError(f"{BASE_ADAPTER} cannot be chosen: the base has no classes in this bank")
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
        """Run any module once per adapter, on that adapter's samples, and put the outputs back in order."""
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
        """Run a LayerNorm or Linear with separate parameters for each sample."""
        stacked = {key: torch.stack([s[key] for s in samples]) for key in samples[0]}
        middle = [1] * (x.ndim - 2)
        bias = stacked["bias"].view(len(x), *middle, -1) if "bias" in stacked else 0
        if isinstance(self.original, nn.LayerNorm):
            normed = F.layer_norm(x, self.original.normalized_shape, None, None, self.original.eps)
            return (normed * stacked["weight"].view(len(x), *middle, -1) + bias).to(x.dtype)
        return (torch.einsum("b...k,bdk->b...d", x.to(stacked["weight"]), stacked["weight"]) + bias).to(x.dtype)

    def _values_of_samples(self) -> list[dict[str, Tensor]]:
        """The parameters of each selected sample."""
        if self.selection.ids is not None:
            return [self.values[k] for k in self.selection.ids.tolist()]
        if not _are_alike(self.values[:-1]):
            raise InputError("adapters with different numbers of classes cannot be mixed by weights")
        return [self._mixture(weights) for weights in self.selection.weights.tolist()]

    def _mixture(self, weights: list[float]) -> dict[str, Tensor]:
        """Sum the copies with weights, as `algebra.blend` does for modules saved whole."""
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
