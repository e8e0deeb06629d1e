"""A tuner that is strict where PEFT is silent.

PEFT matches ``modules_to_save`` as suffixes of names, ignores adapter file keys that do not match, and changes layers
before it has checked all of them.
"""

import contextlib
import copy
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _maybe_include_all_linear_layers, onload_layer
from peft.utils import INCLUDE_LINEAR_LAYERS_SHORTHAND, AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from peft.utils.constants import DUMMY_TARGET_MODULES, EMBEDDING_LAYER_NAMES
from torch import nn

from onelora_vision.errors import InputError, listed, nearest
from onelora_vision.tuners import hosts, shortcuts
from onelora_vision.tuners.checks import check_keys
from onelora_vision.tuners.layer import BASE_ADAPTER, LinearAdapter
from onelora_vision.tuners.matching import Targets, ends_of, shown_targets
from onelora_vision.tuners.whole import WholeModule


class StrictTuner(BaseTuner):
    """A PEFT tuner that matches names exactly and refuses what does not fit.

    * ``modules_to_save``: a full module name means only that module; otherwise every module whose dotted name ends
      with it. Names that match nothing are an error.
    * ``target_modules``: every entry of a list must match, and only linear layers; errors name the modules.
    * An adapter file must have exactly the keys that the config requires.
    * Mixed batches (``adapter_names=``) work for every layer and every fully trained module.
    """

    #: Some of PEFT's tuners ignore ``adapter_names``.
    takes_mixed_batches = True
    target_module_mapping: dict[str, list[str]] = {}
    _targets: Targets | None = None  # of the config being injected

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict) -> PeftConfig:
        if peft_config.target_modules is None:
            raise InputError("target_modules is missing: give module names, a regular expression or 'all-linear'")
        return peft_config

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, state_dict: dict | None = None, **kwargs: Any
    ) -> None:
        """PEFT's injection, but we match ``modules_to_save`` and check everything before any layer changes."""
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
            self.peft_config.pop(adapter_name, None)  # for a second adapter in the model, PEFT adds it beforehand
            raise
        finally:
            config.modules_to_save, self._targets = modules_to_save, None
        for name in self._whole_names:
            self._train_whole(model, name, adapter_name, config.inference_mode)
        shortcuts.call_adapted_layers(model)

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
        """PEFT's check would match the config's expression with ``re``; `hosts.check_adaptable` handles tied layers."""

    def _check_targets(self, model: nn.Module, config: PeftConfig, state_dict: dict | None) -> None:
        """Refuse targets that match nothing or cannot be adapted; "all-linear" becomes names, as in PEFT."""
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
        """PEFT's merging, with every layer checked before any changes.

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
        shortcuts.restore_shortcuts(model)
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
        """Unlike PEFT, move and assign nothing: that needs a weight, and would change a computed or offloaded one."""
        setattr(parent, child_name, new_module)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; other active adapters stay active even if no layer is adapted (unlike in PEFT)."""
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
        # A module in two places has two names here, but only the first is in the file.
        first = {id(value): key for key, value in reversed(expected.items())}.values()
        # If a language model's vocabulary has changed, PEFT saves its embeddings with the adapter.
        embeddings = {key for key in given & set(known) if set(key.split(".")) & set(EMBEDDING_LAYER_NAMES)}
        check_keys(missing=set(first) - given, unexpected=given - set(expected) - embeddings)
        return remapped

    @classmethod
    def _is_adapter_key(cls, key: str, adapter_name: str) -> bool:
        """Whether ``key`` of the model's state dict belongs to ``adapter_name`` and must therefore be in its file."""
        is_vector = f".{cls.prefix}" in key and key.endswith(f".{adapter_name}")
        return is_vector or f".modules_to_save.{adapter_name}." in key

    @contextlib.contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Pass ``adapter_names`` of a forward call (one per sample, ``"__base__"`` for none) to all adapted layers."""
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
        """Whether PEFT can convert the adapter to LoRA: it adapts layers, and only by changing their weights."""
        layers = [module for module in self.modules() if isinstance(module, BaseTunerLayer)]
        return bool(layers) and all(layer.supports_lora_conversion(adapter_name) for layer in layers)


def _pass_adapter_names(module: nn.Module, args: tuple, kwargs: dict, adapter_names: list[str]) -> tuple[tuple, dict]:
    return args, {**kwargs, "adapter_names": adapter_names}


def _all_linear(model: nn.Module, config: PeftConfig, own: Collection[str]) -> set[str]:
    """PEFT's names for "all-linear" plus the layers of earlier adapters, which PEFT omits; none inside wrappers."""
    names = _maybe_include_all_linear_layers(copy.copy(config), model).target_modules
    adapted = {name for name, module in model.named_modules() if isinstance(module, LinearAdapter)}
    return {*names, *adapted} & set(own)


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Named modules of the model itself, excluding the root and whatever is inside adapted layers and wrappers."""
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not name or (inside and name.startswith(inside)):
            continue
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            inside += (f"{name}.",)
        yield name, module


def _nearest_module(name: str, modules: Sequence[str]) -> str:
    """A hint at the module that was probably meant by ``name``: a full name, or the last part of one."""
    known = list(modules) if "." in name else sorted({key.rpartition(".")[2] for key in modules})
    return nearest(name, known, "module")


def find_modules(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Full names of the modules that ``names`` mean: the module with exactly that name, else all that end with it.

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
