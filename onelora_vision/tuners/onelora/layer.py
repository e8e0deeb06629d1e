"""The adapted linear layer of 1LoRA and its family."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from onelora_vision.compressions import Compression
from onelora_vision.errors import InputError
from onelora_vision.tuners import hosts
from onelora_vision.tuners.layer import LinearAdapter
from onelora_vision.tuners.onelora import operator
from onelora_vision.tuners.onelora.compression import (
    random_compression,
    singular_compression,
    subspace_compression,
    subspace_rank,
)
from onelora_vision.tuners.onelora.config import OneLoraConfig
from onelora_vision.tuners.onelora.vectors import Vectors, compose, delta_weight, merged, weighted
from onelora_vision.tuners.precision import CompressionDict, VectorDict
from onelora_vision.tuners.whole import version_of

_RANDOM_INIT_STD = 0.02


def compression_vector(
    name: str, layer: nn.Linear, compression: Compression, weight: Tensor | None = None
) -> Tensor | None:
    """The compression vector v (k,), or vectors (m, k), of a frozen layer, on its device; None for the plain sum.

    Args:
        name: of the layer (d, k), for the message.
        weight: the frozen weight (d, k), if it is not the layer's current one.

    Raises:
        InputError: the vectors depend on the weight, and its values cannot be read.
    """
    if compression.name == "random":
        return random_compression(layer.in_features, compression.seed).to(hosts.device_of(layer))
    if compression.name == "sum":
        return None
    weight = layer.weight if weight is None else weight
    if isinstance(weight, FakeTensor):  # shapes without values, to plan the memory of a step
        count = () if compression.name == "singular" else (subspace_rank(*weight.shape, compression.rank),)
        return weight.new_empty(*count, weight.shape[1], dtype=torch.promote_types(weight.dtype, torch.float32))
    _check_readable(name, layer, compression)
    return (
        singular_compression(weight)
        if compression.name == "singular"
        else subspace_compression(weight, compression.rank)
    )


def _check_readable(name: str, layer: nn.Linear, compression: Compression) -> None:
    if problem := hosts.weight_problem(layer):
        raise InputError(
            f"{name}: compression={compression.name!r} reads the weight, which {problem}; or choose compression 'sum' or "
            "'random'"
        )


class OneLoraLayer(LinearAdapter):
    """``y = gamma * (W0 x + beta0 + beta) + b * sum_i x_i``; parameters are (out_features,) and fp32."""

    adapter_layer_names = ("onelora_b", "onelora_beta", "onelora_gamma")
    other_param_names = (*LinearAdapter.other_param_names, "compression_keys")

    def __init__(self, base_layer: nn.Module, module_name: str) -> None:
        super().__init__(base_layer, module_name)
        self.onelora_b = VectorDict()
        self.onelora_beta = VectorDict()
        self.onelora_gamma = VectorDict(start=1.0)
        # Compression vectors by key (adapters with equal keys share one), and by adapter its key unless a plain sum.
        self.compression_vectors = CompressionDict({})
        self.compression_keys: dict[str, str] = {}
        self._compressions: dict[str, Compression] = {}  # by key
        self._seen: dict[
            str, tuple[int, int]
        ] = {}  # id and version of the weight that each key's vectors were computed from
        self.register_load_state_dict_post_hook(_follow_loaded_weight)

    @classmethod
    def check_config(cls, name: str, layer: nn.Linear, config: OneLoraConfig) -> None:
        if config.use_sum and config.compressed_by.reads_weight and not hosts.is_empty(layer):
            _check_readable(name, layer, config.compressed_by)

    def update_layer(self, adapter_name: str, config: OneLoraConfig) -> None:
        """Add an adapter's parameters, on the base layer's device."""
        parts = {"onelora_b": config.use_sum, "onelora_beta": config.use_bias, "onelora_gamma": config.use_scale}
        noise = 0.0 if config.init_weights else _RANDOM_INIT_STD
        for name, is_used in parts.items():
            if is_used:
                getattr(self, name).add(adapter_name, (self.out_features,), self.device, noise=noise)
        self.scaling[adapter_name] = 1.0
        self.r[adapter_name] = 1
        if config.use_sum and config.compression != "sum":
            key = self.compression_keys[adapter_name] = config.compression_key
            self._compressions[key] = config.compressed_by
            if key not in self.compression_vectors and not hosts.is_empty(self.get_base_layer()):
                self._build(key)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @torch.compiler.disable
    def _build(self, key: str) -> None:
        layer, weight, compression = self.get_base_layer(), None, self._compressions[key]
        if compression.reads_weight:
            weight = self.frozen_weight
            self._seen[key] = (id(weight), version_of(weight))
        self.compression_vectors[key] = compression_vector(self.module_name, layer, compression, weight)

    def _compression(self, key: str) -> Tensor:
        """The vectors of a key; built now if the base had no values before, and rebuilt if its weight has changed."""
        is_current = key in self.compression_vectors
        if is_current and key in self._seen and not torch.compiler.is_compiling():
            weight, (seen, version) = self.frozen_weight, self._seen[key]
            # A different object is the same weight gathered for this call, or was loaded: the hook handles that.
            is_current = seen != id(weight) or version == version_of(weight)
        if not is_current:
            self._build(key)
        return self.compression_vectors[key]

    def vectors(self, adapter_name: str) -> Vectors:
        """One adapter's parameters, not yet scaled; all None if this layer does not have the adapter."""
        key = self.compression_keys.get(adapter_name)
        return Vectors(
            b=self.onelora_b.get(adapter_name),
            beta=self.onelora_beta.get(adapter_name),
            gamma=self.onelora_gamma.get(adapter_name),
            v=None if key is None else self._compression(key),
        )

    def composed(self, names: Sequence[str]) -> list[Vectors]:
        """The adapters ``names``, each scaled by its weight, composed (see `vectors.compose`)."""
        return compose([self.vectors(name) for name in names], [self.scaling[name] for name in names])

    def forward_adapted(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        vectors = self.composed(names)
        if hosts.is_plain_linear(self.base_layer):
            return operator.linear(x, self.base_layer.weight, self.base_layer.bias, vectors)
        return operator.epilogue(self.base_layer(x), x, vectors)

    def forward_mixed(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        unique = list(dict.fromkeys(names))
        adapters = [weighted(self.vectors(name), self.scaling.get(name, 1.0)) for name in unique]
        choice = torch.tensor([unique.index(name) for name in names], device=x.device)
        return operator.mixed_epilogue(self.base_layer(x), x, adapters, choice)

    def merged_tensors(
        self, weight: torch.Tensor, bias: torch.Tensor | None, names: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return merged(weight, bias, self.composed(names))

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Change (out_features, in_features) of the unmerged weight due to the adapter, fp32.

        Raises:
            InputError: gamma scales a weight whose values cannot be read.
        """
        vectors = self.composed([adapter])
        if vectors[0].gamma is None:  # the result does not depend on the weight, which may be quantised
            return delta_weight(torch.zeros(self.out_features, self.in_features, device=self.device), vectors)
        hosts.check_layer_mergeable(self.module_name, self.get_base_layer())
        return delta_weight(self.frozen_weight, vectors)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Only b changes the weight by a low-rank matrix; beta and gamma do not."""
        return adapter_name not in self.onelora_beta and adapter_name not in self.onelora_gamma


def _follow_loaded_weight(layer: OneLoraLayer, incompatible_keys: object) -> None:
    """After ``load_state_dict``: rebuild the vectors if the base's weight is not the one they were computed from."""
    base, weight = layer.get_base_layer(), layer.frozen_weight
    for key in dict.fromkeys(layer.compression_keys.values()):
        if not layer._compressions[key].reads_weight or weight.is_meta:
            continue
        if layer._seen.get(key) == (id(weight), version_of(weight)):
            continue
        if key in layer.compression_vectors:
            del layer.compression_vectors[key]
        if not hosts.weight_problem(base):  # a sharded weight is gathered when the layer is called
            layer._build(key)
