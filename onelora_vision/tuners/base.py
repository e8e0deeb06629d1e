"""What our methods share on top of PEFT: fp32 adapter parameters, exact merging, strict matching and loading.

PEFT matches ``modules_to_save`` by the letters a name ends with, is silent when the keys of an adapter file do not
match, and makes half-precision adapters on half-precision models. The classes here are where these three end.
"""

import contextlib
import copy
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
    check_adapters_to_merge,
    onload_layer,
)
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND, AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES, EMBEDDING_LAYER_NAMES
from torch import nn

from onelora_vision.errors import InputError, listed, nearest
from onelora_vision.tuners import hosts
from onelora_vision.tuners.matching import Targets, ends_of, shown_targets
from onelora_vision.tuners.whole import WholeModule, is_low_precision

BASE_ADAPTER = "__base__"


def check_choice(name: str, value: object, choices: tuple) -> None:
    """Refuse a ``value`` of field ``name`` that is not one of ``choices``."""
    if value not in choices:
        raise InputError(f"{name}={value!r} is not possible{nearest(str(value), choices, 'value')}")


def check_targets(config: PeftConfig) -> None:
    """Refuse target fields of a wrong type or in contradiction; make a list of targets a set, as PEFT does."""
    for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_pattern"):
        value = getattr(config, name)
        is_names = isinstance(value, (list, tuple, set)) and all(isinstance(v, str) and v for v in value)
        if (
            value is not None
            and not is_names
            and (name == "modules_to_save" or not (isinstance(value, str) and value))
        ):
            raise InputError(f"{name}={value!r} is not possible: give a list of module names")
    layers = config.layers_to_transform
    numbers = layers if isinstance(layers, (list, tuple, set)) else [] if layers is None else [layers]
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise InputError(f"layers_to_transform={layers!r} is not possible: give layer numbers from 0")
    if isinstance(config.target_modules, str) and layers is not None:
        raise InputError(f"layers_to_transform={layers!r} needs target_modules as a list of names, not an expression")
    if config.layers_pattern and layers is None:
        raise InputError(f"layers_pattern={config.layers_pattern!r} needs layers_to_transform")
    for name in ("target_modules", "exclude_modules"):
        if isinstance(getattr(config, name), (list, tuple)):
            setattr(config, name, set(getattr(config, name)))


class _KeepsPrecision(nn.Module):
    """Casting the model to half precision moves the tensors in here but leaves them fp32."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        def keeping_precision(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            return tensor.to(changed.device) if is_low_precision(changed) else changed

        return super()._apply(keeping_precision, recurse)


class VectorDict(_KeepsPrecision, nn.ParameterDict):
    """Adapter parameters by adapter name, never below fp32: bf16 would round most of an AdamW step away.

    Args:
        start: the value at which the parameters change nothing. Parameters made on the meta device take it when
            ``to_empty`` gives them memory.
    """

    def __init__(self, parameters: Any = None, start: float = 0.0) -> None:
        super().__init__(parameters)
        self.start = start

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        def with_values(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            return changed.fill_(self.start) if tensor.is_meta and not changed.is_meta else changed

        return super()._apply(with_values, recurse)


class CompressionDict(_KeepsPrecision, BufferDict):
    """Fixed vectors by compression key, rebuilt and not saved, never below fp32; never on the meta device."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        for key in [key for key, vector in self.items() if vector.is_meta]:
            del self[key]
        return self


class LinearAdapter(nn.Module, BaseTunerLayer):
    """An adapted linear layer: the frozen ``base_layer`` and, by adapter name, parameters in `VectorDict`s.

    A subclass says which parameters an adapter has, how they change the output (`forward_adapted`, `forward_mixed`)
    and what they make of the base's weight and bias (`merged_tensors`). An adapter's contribution is scaled by
    ``scaling[adapter]``; ``r`` is there because diffusers reads it.
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
        """Refuse a Linear ``layer`` that this method cannot adapt with ``config``; asked before any layer changes.

        Raises:
            InputError: names the layer and the reason.
        """

    @property
    def device(self) -> torch.device:
        """The device of new adapter parameters."""
        return hosts.device_of(self.get_base_layer())

    @property
    def frozen_weight(self) -> torch.Tensor:
        """The base's weight without the adapters that are merged into it now."""
        return self.get_base_layer().weight if self._unmerged is None else self._unmerged[0]

    @abstractmethod
    def forward_adapted(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        """Output (..., out_features) for input (..., in_features) with the adapters ``names`` applied."""

    @abstractmethod
    def forward_mixed(self, x: torch.Tensor, names: list[str]) -> torch.Tensor:
        """Output for input (batch, ..., in_features), where sample i goes through adapter ``names[i]``."""

    @abstractmethod
    def merged_tensors(
        self, weight: torch.Tensor, bias: torch.Tensor | None, names: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """New weight (out_features, in_features) and bias (out_features,) or None with ``names`` merged."""

    def forward(self, x: torch.Tensor, adapter_names: list[str] | None = None) -> torch.Tensor:
        """Apply the base layer and the active adapters; ``adapter_names`` gives one adapter per sample instead."""
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
        """Those of ``adapter_names`` (by default the active ones) that this layer has and that are not merged yet."""
        names = self.active_adapters if adapter_names is None else adapter_names
        return [name for name in names if name in self.scaling and name not in self.merged_adapters]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Give the base layer merged parameters of its own; `unmerge` puts the original ones back, exact to the bit.

        Parameters that are tied to this layer's stay as they are.

        Args:
            safe_merge: refuse, with nothing changed, if a merged value would be NaN or infinite.
            adapter_names: adapters to merge, all active ones by default. They compose with those merged before.

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
        """Weight and bias with ``names`` merged in addition to those merged already; nothing changes.

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
        """Put the parameters from before the first `merge` back."""
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
        """The plain layer, with the adapters merged or as it was before; PEFT's (merge_and_)unload calls this."""
        if merge:
            self.merge(safe_merge=safe_merge, adapter_names=adapter_names)
        else:
            self.unmerge()
        self._unmerged = None
        return self.get_base_layer()

    def set_scale(self, adapter: str, scale: float) -> None:
        """Weight the contribution of ``adapter`` by ``scale`` (1 as trained)."""
        if adapter in self.scaling:
            self.scaling[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the weights of all active adapters by ``scale``."""
        for name in self.active_adapters:
            self.set_scale(name, self.scaling.get(name, 1.0) * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer(scale)`; without ``scale`` back to 1."""
        for name in self.active_adapters:
            self.set_scale(name, 1.0 if scale is None else self.scaling.get(name, 1.0) / scale)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """PEFT casts adapters to the base's dtype here; ours move only, and never end below fp32."""
        device = device or self.device
        for attribute in self.adapter_layer_names:
            vectors = getattr(self, attribute)
            if adapter_name in vectors and vectors[adapter_name].device.type != "meta":
                vector = vectors[adapter_name]
                vectors[adapter_name] = vector.to(device, torch.float32 if is_low_precision(vector) else vector.dtype)


class StrictTuner(BaseTuner):
    """A PEFT tuner that takes names exactly and refuses what does not fit.

    * ``modules_to_save``: a full module name means that module alone; otherwise every module whose dotted name ends
      with it. Names that match nothing are an error.
    * ``target_modules``: every entry of a list must match, and only linear layers; errors name the modules.
    * An adapter file must have exactly the keys that the config asks for.
    * Mixed batches (``adapter_names=``) work for every layer and every wholly trained module.
    """

    target_module_mapping: dict[str, list[str]] = {}
    _targets: Targets | None = None  # of the config that is being injected

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        if peft_config.target_modules is None:
            raise InputError("target_modules is missing: give module names, a regular expression or 'all-linear'")
        return peft_config

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, state_dict: dict | None = None, **kwargs: Any
    ) -> None:
        """PEFT's injection, with ``modules_to_save`` matched by us and everything checked before a layer changes."""
        config = self.peft_config[adapter_name]
        modules_to_save = config.modules_to_save
        try:
            self._whole_names = find_modules(model, modules_to_save or [])
            hosts.check_trainable_whole(model, self._whole_names)
            self._prepare_adapter_config(config, {})
            self._check_targets(model, config, state_dict)
            config.modules_to_save = None
            super().inject_adapter(model, adapter_name, *args, state_dict=state_dict, **kwargs)
        except Exception:
            self.peft_config.pop(adapter_name, None)  # PEFT enters it beforehand, for a second adapter in the model
            raise
        finally:
            config.modules_to_save, self._targets = modules_to_save, None
        for name in self._whole_names:
            self._train_whole(model, name, adapter_name, config.inference_mode)
        hosts.call_adapted_layers(model)

    def _train_whole(self, model: nn.Module, name: str, adapter_name: str, inference_mode: bool) -> None:
        module = model.get_submodule(name)
        if isinstance(module, ModulesToSaveWrapper):
            module.update(adapter_name)
        else:
            module = WholeModule(module, adapter_name)
            model.set_submodule(name, module)
            module.set_adapter([])
        if adapter_name in self.active_adapters:
            module.set_adapter(adapter_name, inference_mode=inference_mode)

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> Any:
        if any(key == name or key.startswith(f"{name}.") for name in self._whole_names):
            return False
        return (self._targets or Targets(peft_config)).check(key)

    def _check_tied_modules(self, model: nn.Module, peft_config: PeftConfig) -> None:
        """PEFT's check matches the config's expression with ``re``; tied layers are `hosts.check_adaptable`'s."""

    def _check_targets(self, model: nn.Module, config: PeftConfig, state_dict: dict | None) -> None:
        """Refuse targets that match nothing or that cannot be adapted; "all-linear" becomes names, as in PEFT."""
        targets = config.target_modules
        if targets == DUMMY_TARGET_MODULES:
            return
        modules = dict(own_modules(model))
        if isinstance(targets, str) and targets.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND:
            config.target_modules = _all_linear(model, config, modules)
        elif not isinstance(targets, str):
            there = {end for key in modules for end in ends_of(key)}
            missing = sorted(set(targets) - there)
            if missing:
                raise InputError(
                    f"no module matches target_modules {listed(missing)}{_nearest_module(missing[0], modules)}"
                )
        try:
            self._targets = Targets(config)
            matched = [key for key in modules if self._check_target_module_exists(config, key)]
            if not matched:
                raise InputError(
                    f"no module matches target_modules={shown_targets(targets)} (after exclude_modules, modules_to_save)"
                )
            in_file = {key.rsplit(f".{self.prefix}", 1)[0] for key in state_dict or ()}  # PEFT adapts these instead
            matched += [key for key in modules if key in in_file and key not in matched]
            hosts.check_adaptable(model, matched)
            for key in matched:
                self.tuner_layer_cls.check_config(key, hosts.base_of(modules[key]), config)
        except InputError:
            config.target_modules = targets
            raise

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """PEFT's merging; every layer is checked before one changes.

        Raises:
            InputError: a layer cannot be merged into, or ``safe_merge`` found a value that is not finite.
        """
        self._check_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(
        self, merge: bool = True, progressbar: bool = False, safe_merge: bool = False, adapter_names: Any = None
    ) -> nn.Module:
        if merge:
            self._check_merge(adapter_names, safe_merge)
        model = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        hosts.restore_shortcuts(model)
        return model

    def _check_merge(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        layers = {
            name: (layer, names)
            for name, layer in self.model.named_modules()
            if isinstance(layer, self.tuner_layer_cls) and (names := layer.adapters_to_merge(adapter_names))
        }
        hosts.check_mergeable(self.model, layers)
        if safe_merge:
            for layer, names in layers.values():
                with onload_layer(layer):
                    layer.merged_with(names, safe_merge)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config)
            return
        layer = self.tuner_layer_cls(target, current_key)
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Nothing is moved or assigned, as it is in PEFT: that needs a weight, and changes a computed or offloaded one."""
        setattr(parent, child_name, new_module)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if others were active they stay so, also where no layer is adapted (unlike in PEFT)."""
        active = [name for name in self.active_adapters if name != adapter_name]
        super().delete_adapter(adapter_name)
        active = active or list(self.peft_config)[:1]
        if active != self.active_adapters and active:
            self.set_adapter(active, inference_mode=self.peft_config[active[0]].inference_mode)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        known = model.state_dict(keep_vars=True)
        prefix = "" if any(key.startswith("base_model.model.") for key in known) else "base_model.model."
        given = {key.removeprefix(prefix) for key in remapped}
        expected = {key: value for key, value in known.items() if cls._is_adapter_key(key, adapter_name)}
        # A module that the model holds in two places has two names here, but only the first one in the file.
        first = {id(value): key for key, value in reversed(expected.items())}.values()
        # PEFT saves the embeddings of a language model beside an adapter when its vocabulary has changed.
        embeddings = {key for key in given & set(known) if set(key.split(".")) & set(EMBEDDING_LAYER_NAMES)}
        check_keys(missing=set(first) - given, unexpected=given - set(expected) - embeddings)
        return remapped

    @classmethod
    def _is_adapter_key(cls, key: str, adapter_name: str) -> bool:
        """Whether ``key`` of the model's state dict belongs to ``adapter_name`` and so must be in its file."""
        is_vector = f".{cls.prefix}" in key and key.endswith(f".{adapter_name}")
        return is_vector or f".modules_to_save.{adapter_name}." in key

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hand ``adapter_names`` of a forward call (one per sample, ``"__base__"`` for none) to all adapted layers."""
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        unknown = set(names) - set(self.peft_config) - {BASE_ADAPTER}
        if unknown:
            raise InputError(f"adapter_names holds unknown {listed(unknown)}{nearest(min(unknown), self.peft_config)}")
        hook = partial(_pass_adapter_names, adapter_names=list(names))
        handles = [
            module.register_forward_pre_hook(hook, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, (self.tuner_layer_cls, AuxiliaryTrainingWrapper))
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT can convert the adapter to LoRA: layers are adapted, and each by a change of weight only."""
        layers = [module for module in self.modules() if isinstance(module, BaseTunerLayer)]
        return bool(layers) and all(layer.supports_lora_conversion(adapter_name) for layer in layers)


def _pass_adapter_names(module: nn.Module, args: tuple, kwargs: dict, adapter_names: list[str]) -> tuple[tuple, dict]:
    return args, {**kwargs, "adapter_names": adapter_names}


def check_keys(missing: Sequence[str], unexpected: Sequence[str]) -> None:
    """Refuse an adapter file that does not fit.

    Raises:
        InputError: a key is missing or unexpected; PEFT alone would leave the base untouched without a word.
    """
    problems = []
    if missing:
        problems.append(f"it lacks {listed(missing)}")
    if unexpected:
        problems.append(f"this model has no place for {listed(unexpected)}")
    if problems:
        raise InputError(f"the adapter file does not fit this model: {'; '.join(problems)}")


def _all_linear(model: nn.Module, config: PeftConfig, own: Collection[str]) -> set[str]:
    """PEFT's names for "all-linear", and the layers of earlier adapters; PEFT leaves those out, and enters wrappers."""
    names = _maybe_include_all_linear_layers(copy.copy(config), model).target_modules
    adapted = {name for name, module in model.named_modules() if isinstance(module, LinearAdapter)}
    return {*names, *adapted} & set(own)


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Named modules of the model itself: not what is inside adapted layers and wrappers, and not the root."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or (inside and name.startswith(inside)):
            continue
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            inside += (f"{name}.",)
        yield name, module


def _nearest_module(name: str, modules: Sequence[str]) -> str:
    """A hint at the module that ``name`` was meant for: a full name, or the last part of one."""
    known = list(modules) if "." in name else sorted({key.rpartition(".")[2] for key in modules})
    return nearest(name, known, "module")


def find_modules(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Full names of the modules that ``names`` mean: the module of exactly that name, else all that end with it.

    Raises:
        InputError: a name matches no module.
    """
    own = [name for name, _ in own_modules(model)]
    found: dict[str, None] = {}
    for name in names:
        matches = [name] if name in own else [key for key in own if key.endswith(f".{name}")]
        if not matches:
            raise InputError(f"no module matches modules_to_save {name!r}{_nearest_module(name, own)}")
        found.update(dict.fromkeys(matches))
    return list(found)
