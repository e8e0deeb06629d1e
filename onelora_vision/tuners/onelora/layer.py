"""The adapted linear layer of 1LoRA and its family."""

from collections.abc import Sequence

import torch
from torch import nn

from onelora_vision.errors import InputError
from onelora_vision.tuners.base import CompressionDict, LinearAdapter, VectorDict, is_plain_linear
from onelora_vision.tuners.onelora import functional
from onelora_vision.tuners.onelora.config import OneLoraConfig
from onelora_vision.tuners.onelora.functional import Vectors

_RANDOM_INIT_STD = 0.02


class OneLoraLayer(LinearAdapter):
    """``y = gamma * (W0 x + beta0 + beta) + b * sum_i x_i``; parameters are (out_features,) and fp32."""

    adapter_layer_names = ("onelora_b", "onelora_beta", "onelora_gamma")
    other_param_names = (*LinearAdapter.other_param_names, "compression_keys")

    def __init__(self, base_layer: nn.Module, module_name: str) -> None:
        super().__init__(base_layer, module_name)
        self.onelora_b = VectorDict({})
        self.onelora_beta = VectorDict({})
        self.onelora_gamma = VectorDict({})
        # Compression vectors by key (adapters with one key share one), and the key of each adapter that is no plain sum.
        self.compression_vectors = CompressionDict({})
        self.compression_keys: dict[str, str] = {}

    def update_layer(self, adapter_name: str, config: OneLoraConfig) -> None:
        """Add the parameters of an adapter, on the base layer's device."""
        device = self.get_base_layer().weight.device
        parts = {
            "onelora_b": (config.use_sum, 0.0),
            "onelora_beta": (config.use_bias, 0.0),
            "onelora_gamma": (config.use_scale, 1.0),
        }
        for name, (is_used, start) in parts.items():
            if is_used:
                vector = torch.full((self.out_features,), start, device=device, dtype=torch.float32)
                if not config.init_weights:
                    vector += _RANDOM_INIT_STD * torch.randn_like(vector)
                getattr(self, name)[adapter_name] = nn.Parameter(vector)
        self.scaling[adapter_name] = 1.0
        self.r[adapter_name] = 1
        if config.use_sum and config.compression != "sum":
            key = self.compression_keys[adapter_name] = config.compression_key
            if key not in self.compression_vectors:
                self.compression_vectors[key] = self._compression_vector(config)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _compression_vector(self, config: OneLoraConfig) -> torch.Tensor:
        weight = self.get_base_layer().weight if self._unmerged is None else self._unmerged[0]
        is_known = weight.is_floating_point() and weight.shape == (self.out_features, self.in_features)
        if config.compression == "singular" and not is_known:
            raise InputError(
                f"{self.module_name}: compression='singular' needs its weight, which is quantised; use 'sum' or 'random'"
            )
        return functional.compression_vector(config.compression, weight, config.compression_seed)

    def vectors(self, adapter_name: str) -> Vectors:
        """The parameters of one adapter, not yet weighted; all None for an adapter that this layer does not have."""
        key = self.compression_keys.get(adapter_name)
        return Vectors(
            b=self.onelora_b.get(adapter_name),
            beta=self.onelora_beta.get(adapter_name),
            gamma=self.onelora_gamma.get(adapter_name),
            v=None if key is None else self.compression_vectors[key],
        )

    def composed(self, names: Sequence[str]) -> list[Vectors]:
        """The adapters ``names``, each at its weight, composed (see `functional.compose`)."""
        return functional.compose([self.vectors(name) for name in names], [self.scaling[name] for name in names])

    def forward_adapted(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        vectors = self.composed(names)
        if is_plain_linear(self.base_layer):
            return functional.linear(x, self.base_layer.weight, self.base_layer.bias, vectors)
        return functional.epilogue(self.base_layer(x), x, vectors)

    def forward_mixed(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        unique = list(dict.fromkeys(names))
        adapters = [functional.weighted(self.vectors(name), self.scaling.get(name, 1.0)) for name in unique]
        choice = torch.tensor([unique.index(name) for name in names], device=x.device)
        return functional.mixed_epilogue(self.base_layer(x), x, adapters, choice)

    def merged_tensors(
        self, weight: torch.Tensor, bias: torch.Tensor | None, names: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return functional.merged(weight, bias, self.composed(names))

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Change (out_features, in_features) that the adapter makes to the unmerged weight, fp32."""
        weight = self.get_base_layer().weight if self._unmerged is None else self._unmerged[0]
        return functional.delta_weight(weight, self.composed([adapter]))

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Only b is a change of the weight by a low-rank matrix; beta and gamma are not."""
        return adapter_name not in self.onelora_beta and adapter_name not in self.onelora_gamma
