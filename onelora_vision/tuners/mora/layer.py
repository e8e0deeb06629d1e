"""The adapted linear layer of MoRA."""

import torch
from torch import nn

from onelora_vision.errors import InputError
from onelora_vision.tuners.layer import LinearAdapter
from onelora_vision.tuners.mora import functional
from onelora_vision.tuners.mora.config import MoraConfig
from onelora_vision.tuners.precision import VectorDict

_RANDOM_INIT_STD = 0.02


class MoraLayer(LinearAdapter):
    """``y = W0 x + f_expand(M f_compress(x))``; M is (r_hat, r_hat) and fp32."""

    adapter_layer_names = ("mora_m",)
    other_param_names = (*LinearAdapter.other_param_names, "mora_type")

    def __init__(self, base_layer: nn.Module, module_name: str) -> None:
        super().__init__(base_layer, module_name)
        self.mora_m = VectorDict({})
        self.mora_type: dict[str, int] = {}

    @classmethod
    def check_config(cls, name: str, layer: nn.Linear, config: MoraConfig) -> None:
        if _r_hat(layer.out_features, config) == 0:
            raise InputError(f"{name}: {layer.out_features} outputs are too few for mora_type=6; exclude it")

    def update_layer(self, adapter_name: str, config: MoraConfig) -> None:
        """Add an adapter's matrix, on the base layer's device."""
        r_hat = _r_hat(self.out_features, config)
        noise = 0.0 if config.init_weights else _RANDOM_INIT_STD
        self.mora_m.add(adapter_name, (r_hat, r_hat), self.device, noise=noise)
        self.mora_type[adapter_name] = config.mora_type
        self.scaling[adapter_name] = 1.0
        self.r[adapter_name] = r_hat
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _bypass(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return self.scaling[name] * functional.bypass(x, self.mora_m[name], self.out_features, self.mora_type[name])

    def forward_adapted(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        z = self.base_layer(x)
        y = z
        for name in names:
            y = y + self._bypass(x, name)
        return y.to(z.dtype)

    def forward_mixed(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        y = self.base_layer(x)
        for name in dict.fromkeys(names):
            if name in self.mora_m:
                rows = torch.tensor([i for i, n in enumerate(names) if n == name], device=x.device)
                y = y.index_add(0, rows, self._bypass(x[rows], name).to(y.dtype))
        return y

    def merged_tensors(
        self, weight: torch.Tensor, bias: torch.Tensor | None, names: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        delta = sum(self.get_delta_weight(name) for name in names)
        return (weight.to(delta.dtype) + delta).to(weight.dtype), bias

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Change (out_features, in_features) of the weight due to the adapter, fp32."""
        matrix, mora_type = self.mora_m[adapter], self.mora_type[adapter]
        with torch.no_grad():
            delta = functional.delta_weight(matrix, self.in_features, self.out_features, mora_type)
        return self.scaling[adapter] * delta

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """The change is additive, so a LoRA of rank r_hat or more can represent it."""
        return True


def _r_hat(out_features: int, config: MoraConfig) -> int:
    return config.r_hat or functional.default_r_hat(out_features, config.mora_type)
