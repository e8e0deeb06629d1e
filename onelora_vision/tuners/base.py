"""What our methods share on top of PEFT: fp32 adapter parameters, exact merging, strict matching and loading.

PEFT matches ``modules_to_save`` by the letters a name ends with, is silent when the keys of an adapter file do not
match, and makes half-precision adapters on half-precision models. The classes here are where these three end.
"""

import contextlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import concatenate, recursively_apply
from peft import PeftConfig
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge, check_target_module_exists
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES, EMBEDDING_LAYER_NAMES
from torch import nn

from onelora_vision.errors import InputError, nearest

BASE_ADAPTER = "__base__"
_ALL_LINEAR = "all-linear"
_NAMES_IN_ERROR = 8


def listed(names: Sequence[str]) -> str:
    """Names for an error message: the first few, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - _NAMES_IN_ERROR} more" if len(names) > _NAMES_IN_ERROR else ""
    return ", ".join(names[:_NAMES_IN_ERROR]) + more


def _is_low_precision(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() < 4


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
    """Casting the model to half precision moves what is in here but leaves it fp32."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        def keeping_precision(tensor: torch.Tensor) -> torch.Tensor:
            changed = fn(tensor)
            return tensor.to(changed.device) if _is_low_precision(changed) else changed

        return super()._apply(keeping_precision, recurse)


class VectorDict(_KeepsPrecision, nn.ParameterDict):
    """Adapter parameters by adapter name, never below fp32: bf16 would round most of an AdamW step away."""


class CompressionDict(_KeepsPrecision, BufferDict):
    """Fixed vectors that are rebuilt and so not saved, never below fp32."""


class LinearAdapter(nn.Module, BaseTunerLayer):
    """An adapted linear layer: the frozen ``base_layer`` and, by adapter name, parameters in `VectorDict`s.

    A subclass says which parameters an adapter has, how they change the output (`forward_adapted`, `forward_mixed`)
    and what they make of the base's weight and bias (`merged_tensors`). An adapter's contribution is scaled by
    ``scaling[adapter]``; ``r`` is there because diffusers reads it.
    """

    other_param_names = ("scaling", "r")

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
        self._unmerged: tuple[torch.Tensor, torch.Tensor | None] | None = None

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

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write adapters into the base layer; the original tensors are kept, so that `unmerge` is exact to the bit.

        Args:
            safe_merge: refuse, with nothing changed, if a merged value would be NaN or infinite.
            adapter_names: adapters to merge, all active ones by default. They compose with those merged before.

        Raises:
            InputError: ``safe_merge`` found a value that is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.scaling]
        if not names:
            return
        linear = self.get_base_layer()
        original = self._unmerged or (linear.weight.data, None if linear.bias is None else linear.bias.data)
        with torch.no_grad():
            weight, bias = self.merged_tensors(*original, self.merged_adapters + names)
        if safe_merge and not all(bool(torch.isfinite(t).all()) for t in (weight, bias) if t is not None):
            raise InputError(f"{self.module_name}: merging {listed(names)} gives values that are not finite (NaN)")
        self._unmerged = original
        self._write_base(weight, bias)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the tensors from before the first `merge` back."""
        if self._unmerged is None:
            return
        weight, bias = self._unmerged
        like = self.get_base_layer().weight
        self._write_base(weight.to(like), None if bias is None else bias.to(like))
        self._unmerged = None
        self.merged_adapters.clear()

    def _write_base(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        linear = self.get_base_layer()
        linear.weight.data = weight
        if bias is None:
            linear.bias = None
        elif linear.bias is None:
            linear.bias = nn.Parameter(bias, requires_grad=False)
        else:
            linear.bias.data = bias

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
        device = device or self.get_base_layer().weight.device
        for attribute in self.adapter_layer_names:
            vectors = getattr(self, attribute)
            if adapter_name in vectors and vectors[adapter_name].device.type != "meta":
                vector = vectors[adapter_name]
                vectors[adapter_name] = vector.to(device, torch.float32 if _is_low_precision(vector) else vector.dtype)


class WholeModule(ModulesToSaveWrapper):
    """PEFT's wrapper for a module trained whole, with two additions: mixed batches for any module, and fp32 copies.

    A trained copy of a half-precision module is kept in fp32 and computes in fp32 (see `train_in_float32`).
    """

    def update(self, adapter_name: str, **kwargs: Any) -> None:
        is_new = adapter_name not in self.modules_to_save
        super().update(adapter_name, **kwargs)
        if is_new:
            train_in_float32(self.modules_to_save[adapter_name])

    def _check_forward_args(self, *args: Any, **kwargs: Any) -> None:
        """PEFT's check of the first argument's length is for a tensor; a list of feature maps has none to check."""
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


def train_in_float32(module: nn.Module) -> None:
    """Turn a half-precision module into an fp32 one that still takes and gives tensors of the original dtype.

    Steps of a usual learning rate vanish in the rounding of bf16 parameters. Nothing happens to an fp32 module.
    """
    low = [parameter.dtype for parameter in module.parameters() if _is_low_precision(parameter)]
    if not low:
        return
    module.float()
    module.register_forward_pre_hook(_inputs_to_float32, with_kwargs=True)
    module.register_forward_hook(partial(_outputs_to, dtype=low[0]))


def _inputs_to_float32(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return recursively_apply(_cast, args, torch.float32), recursively_apply(_cast, kwargs, torch.float32)


def _outputs_to(module: nn.Module, args: tuple, output: Any, dtype: torch.dtype) -> Any:
    return recursively_apply(_cast, output, dtype)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


class StrictTuner(BaseTuner):
    """A PEFT tuner that takes names exactly and refuses what does not fit.

    * ``modules_to_save``: a full module name means that module alone; otherwise every module whose dotted name ends
      with it. Names that match nothing are an error.
    * ``target_modules``: every entry of a list must match, and only linear layers; errors name the modules.
    * An adapter file must have exactly the keys that the config asks for.
    * Mixed batches (``adapter_names=``) work for every layer and every wholly trained module.
    """

    target_module_mapping: dict[str, list[str]] = {}

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        if peft_config.target_modules is None:
            raise InputError("target_modules is missing: give module names, a regular expression or 'all-linear'")
        return peft_config

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """PEFT's injection, with ``modules_to_save`` matched by us and everything checked before a layer changes."""
        config = self.peft_config[adapter_name]
        modules_to_save = config.modules_to_save
        self._whole_names = find_modules(model, modules_to_save or [])
        self._prepare_adapter_config(config, {})
        self._check_targets(model, config)
        config.modules_to_save = None
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        finally:
            config.modules_to_save = modules_to_save
        for name in self._whole_names:
            self._train_whole(model, name, adapter_name, config.inference_mode)

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
        return check_target_module_exists(peft_config, key)

    def _check_targets(self, model: nn.Module, config: PeftConfig) -> None:
        targets = config.target_modules
        if targets in (_ALL_LINEAR, DUMMY_TARGET_MODULES):
            return
        modules = dict(_own_modules(model))
        if not isinstance(targets, str):
            missing = [t for t in targets if not any(key == t or key.endswith(f".{t}") for key in modules)]
            if missing:
                raise InputError(
                    f"no module matches target_modules {listed(missing)}{_nearest_module(missing[0], modules)}"
                )
        matched = [key for key in modules if self._check_target_module_exists(config, key)]
        if not matched:
            raise InputError(f"no module matches target_modules={targets!r} (after exclude_modules, modules_to_save)")
        others = [key for key in matched if not isinstance(_base_of(modules[key]), nn.Linear)]
        if others:
            kinds = ", ".join(sorted({type(_base_of(modules[key])).__name__ for key in others}))
            raise InputError(
                f"only Linear layers can be adapted; target_modules also matches {listed(others)} ({kinds})"
            )

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
        if not isinstance(_base_of(target), nn.Linear):
            raise InputError(f"only Linear layers can be adapted; {current_key} is a {type(target).__name__}")
        layer = self.tuner_layer_cls(target, current_key)
        layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):  # unloading; PEFT's way needs a weight, which a norm may lack
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

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
        known = model.state_dict()
        prefix = "" if any(key.startswith("base_model.model.") for key in known) else "base_model.model."
        given = {key.removeprefix(prefix) for key in remapped}
        expected = {key for key in known if cls._is_adapter_key(key, adapter_name)}
        # PEFT saves the embeddings of a language model beside an adapter when its vocabulary has changed.
        embeddings = {key for key in given & set(known) if set(key.split(".")) & set(EMBEDDING_LAYER_NAMES)}
        check_keys(missing=expected - given, unexpected=given - expected - embeddings)
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


def is_plain_linear(module: nn.Module) -> bool:
    """Whether ``module`` computes just ``F.linear(x, weight, bias)``, so that its tensors may be used directly.

    Not so for quantised or sharded weights, layers with hooks (offloading, FSDP2), and other methods' adapters.
    """
    return (
        type(module).forward is nn.Linear.forward
        and "forward" not in module.__dict__
        and not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        and not module._backward_pre_hooks
        and type(module.weight) in (torch.Tensor, nn.Parameter)
        and module.weight.is_floating_point()
    )


def _base_of(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
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
    own = [name for name, _ in _own_modules(model)]
    found: dict[str, None] = {}
    for name in names:
        matches = [name] if name in own else [key for key in own if key.endswith(f".{name}")]
        if not matches:
            raise InputError(f"no module matches modules_to_save {name!r}{_nearest_module(name, own)}")
        found.update(dict.fromkeys(matches))
    return list(found)
