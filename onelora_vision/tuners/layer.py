"""An adapted linear layer: exact merging and unmerging, adapter weights, mixed batches."""

from abc import abstractmethod

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from onelora_vision.errors import InputError, listed
from onelora_vision.tuners import hosts

BASE_ADAPTER = "__base__"  # PEFT's name for "no adapter" in a mixed batch


class LinearAdapter(nn.Module, BaseTunerLayer):
    """An adapted linear layer: the frozen ``base_layer`` and, by adapter name, parameters in `VectorDict`s.

    Subclasses define the parameters of an adapter, how they change the output (`forward_adapted`, `forward_mixed`) and
    how they merge into the base's weight and bias (`merged_tensors`). An adapter's contribution is scaled by
    ``scaling[adapter]``; ``r`` exists because diffusers reads it.
    """

    other_param_names = ("scaling", "r")
    cast_input_dtype_enabled = True  # diffusers' layerwise casting sets it; our layers never cast their input

    def __init__(self, base_layer: nn.Module, module_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.module_name = module_name
        linear = self.get_base_layer()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scaling: dict[str, float] = {}
        self.r: dict[str, int] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._unmerged: tuple[nn.Parameter, nn.Parameter | None] | None = None

    @classmethod
    def check_config(cls, name: str, layer: nn.Module, config: PeftConfig) -> None:
        """Refuse a Linear ``layer`` that this method cannot adapt with ``config``; called before any layer changes.

        Raises:
            InputError: names the layer and the reason.
        """

    @property
    def device(self) -> torch.device:
        """The device of new adapter parameters."""
        return hosts.device_of(self.get_base_layer())

    @property
    def frozen_weight(self) -> torch.Tensor:
        """The base's weight without the adapters that are currently merged into it."""
        return self.get_base_layer().weight if self._unmerged is None else self._unmerged[0]

    @abstractmethod
    def forward_adapted(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        """Output (..., out_features) for input (..., in_features) with the adapters ``names`` applied."""

    @abstractmethod
    def forward_mixed(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        """Output for input (batch, ..., in_features), where sample i uses adapter ``names[i]``."""

    @abstractmethod
    def merged_tensors(
        self, weight: torch.Tensor, bias: torch.Tensor | None, names: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """New weight (out_features, in_features) and bias (out_features,) or None with ``names`` merged."""

    def forward(self, x: torch.Tensor, adapter_names: list[str] | None = None) -> torch.Tensor:
        """Apply the base layer and the active adapters, or the adapters ``adapter_names``, one per sample."""
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x)
        if adapter_names is not None:
            self._check_mixed(x, adapter_names)
            return self.forward_mixed(x, adapter_names)
        names = [] if self.merged else [name for name in self.active_adapters if name in self.scaling]
        return self.forward_adapted(x, names) if names else self.base_layer(x)

    def _check_mixed(self, x: torch.Tensor, names: list[str]) -> None:
        if self.merged:
            raise InputError(
                f"{self.module_name}: adapter_names needs unmerged adapters; call unmerge_adapter() first"
            )
        if len(x) != len(names):
            raise InputError(f"{self.module_name}: {len(names)} adapter_names for an input of {len(x)} samples")

    def adapters_to_merge(self, adapter_names: list[str] | None = None) -> list[str]:
        """Those of ``adapter_names`` (default: the active ones) that this layer has and that are not merged yet."""
        names = self.active_adapters if adapter_names is None else adapter_names
        return [name for name in names if name in self.scaling and name not in self.merged_adapters]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Give the base layer its own merged parameters; `unmerge` restores the original ones bit for bit.

        Parameters tied to this layer's are not changed.

        Args:
            safe_merge: raise and change nothing if a merged value would be NaN or infinite.
            adapter_names: adapters to merge; default: all active ones. They compose with adapters merged earlier.

        Raises:
            InputError: the base layer cannot be merged into, or ``safe_merge`` found a value that is not finite.
        """
        check_adapters_to_merge(self, adapter_names)  # PEFT's warnings
        names = self.adapters_to_merge(adapter_names)
        if not names:
            return
        linear = self.get_base_layer()
        hosts.check_layer_mergeable(self.module_name, linear)
        weight, bias = self.merged_with(names, safe_merge)
        self._unmerged = self._unmerged or (linear.weight, linear.bias)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        linear.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.merged_adapters.extend(names)

    @torch.no_grad()
    def merged_with(self, names: list[str], safe_merge: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias with ``names`` merged in addition to those already merged; changes nothing.

        Raises:
            InputError: ``safe_merge`` found a value that is not finite.
        """
        linear = self.get_base_layer()
        weight, bias = self._unmerged or (linear.weight, linear.bias)
        bias = None if bias is None else bias.data
        merged = self.merged_tensors(weight.data, bias, self.merged_adapters + names)
        if safe_merge and not all(bool(torch.isfinite(t).all()) for t in merged if t is not None):
            raise InputError(f"{self.module_name}: merging {listed(names)} gives values that are not finite (NaN)")
        return merged

    def unmerge(self) -> None:
        """Restore the parameters from before the first `merge`."""
        if self._unmerged is None:
            return
        linear = self.get_base_layer()
        for parameter in self._unmerged:
            if parameter is not None:  # the model may have been moved or cast since
                parameter.data = parameter.data.to(linear.weight)
        linear.weight, linear.bias = self._unmerged
        self._unmerged = None
        self.merged_adapters.clear()

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """The plain layer, merged or in its original state; called by PEFT's (merge_and_)unload."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        else:
            self.unmerge()
        self._unmerged = None
        return self.get_base_layer()

    def set_scale(self, adapter: str, scale: float) -> None:
        """Scale the contribution of ``adapter`` by ``scale`` (1: as trained)."""
        if adapter in self.scaling:
            self.scaling[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the weights of all active adapters by ``scale``."""
        for name in self.active_adapters:
            self.set_scale(name, self.scaling.get(name, 1.0) * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer(scale)`; without ``scale``, reset to 1."""
        for name in self.active_adapters:
            self.set_scale(name, 1.0 if scale is None else self.scaling.get(name, 1.0) / scale)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT casts adapters to the base's dtype here. Ours only move, and never drop below fp32."""
        device = device or self.device
        for attribute in self.adapter_layer_names:
            getattr(self, attribute).move(adapter_name, device)
