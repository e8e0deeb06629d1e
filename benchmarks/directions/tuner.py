"""The candidates as separate methods that the scripts can train like any other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.directions.candidates import CANDIDATES, Rows, rows_of
from onelora_vision.adapters.kinds import KINDS, Kind, Part
from onelora_vision.methods.apply import Options
from onelora_vision.methods.names import METHODS, Method
from onelora_vision.tuners.config import TargetedConfig
from onelora_vision.tuners.layer import LinearAdapter
from onelora_vision.tuners.model import StrictTuner
from onelora_vision.tuners.precision import VectorDict
from onelora_vision.tuners.registry import peft_type, register

KIND = "rows"


class RowsLayer(LinearAdapter):
    """``y = W0 x + β0 + b ⊙ (R x)``, with ordinary operations, which are slower than the package's own operators."""

    adapter_layer_names = ("rows_b",)

    def __init__(self, base_layer, module_name):
        super().__init__(base_layer, module_name)
        self.rows_b = VectorDict()
        self.rows: dict[str, Rows] = {}

    def update_layer(self, adapter_name, config):
        self.rows_b.add(adapter_name, (self.out_features,), self.device)
        self.rows[adapter_name] = rows_of(config.candidate, self.frozen_weight, self.module_name)
        self.scaling[adapter_name] = self.r[adapter_name] = 1
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward_adapted(self, x, names):
        y = self.base_layer(x)
        for name in names:
            y = y + self.scaling[name] * self.rows_b[name] * read(x, self.rows[name])
        return y

    def forward_mixed(self, x, names):
        return torch.stack([self.forward_adapted(part, [name]) for part, name in zip(x, names)])

    def merged_tensors(self, weight, bias, names):
        for name in names:
            weight = weight + self.scaling[name] * self.rows_b[name][:, None] * self.rows[name].matrix()
        return weight, bias


def read(x: Tensor, rows: Rows) -> Tensor:
    """``R x`` (..., d) of x (..., k)."""
    sums = x @ rows.directions.T
    return sums[..., rows.choice] if rows.choice.ndim == 1 else sums @ rows.choice.T


class RowsModel(StrictTuner):
    """Wraps the targeted layers in `RowsLayer`s."""

    prefix = "rows_"
    tuner_layer_cls = RowsLayer


@dataclass
class RowsConfig(TargetedConfig):
    """Selects the candidate."""

    candidate: str = "ones"

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = peft_type(KIND)


def _maker(candidate: str):
    def make(options: Options) -> RowsConfig:
        return RowsConfig(candidate=candidate, **options.targets)

    return make


def add_candidates() -> None:
    """Register the candidates as methods, with names prefixed by ``rows-``."""
    register(KIND, RowsConfig, RowsModel)
    KINDS.setdefault(KIND.upper(), Kind(KIND.upper(), "rows", {"rows_b": Part()}, is_ours=True))
    for candidate in CANDIDATES:
        name = f"rows-{candidate}"
        METHODS.setdefault(name, Method(name, "b (d)", config=_maker(candidate)))
