"""Apply a method of `methods.names` to a model.

To add a method, add a row to the table there, with the function that makes its PEFT config.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from peft import LoraConfig, PeftConfig, PeftModel, VeraConfig, get_peft_model, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from onelora_vision.backbones.base import Adaptation
from onelora_vision.compressions import DEFAULT_RANK
from onelora_vision.errors import InputError, NotApplicable, listed, nearest, one_line
from onelora_vision.methods.names import Method, check_options, check_quantize, find_method
from onelora_vision.methods.peft_config import changes_base, make_config, require_matches
from onelora_vision.methods.peft_methods import PeftMethod
from onelora_vision.methods.residual import keep_initial_values
from onelora_vision.seeding import seeded
from onelora_vision.tuners import MoraConfig, OneLoraConfig, hosts, shortcuts
from onelora_vision.tuners.matching import exact_pattern
from onelora_vision.tuners.mora.functional import ROTATING, SHARING
from onelora_vision.tuners.precision import train_in_float32
from onelora_vision.tuners.quantised import quantise_linears


@dataclass(frozen=True)
class Options:
    """Inputs for a method's config: targets as an expression, modules trained whole, and settings.

    Attributes:
        sizes: number of inputs and outputs of each target.
    """

    target_modules: str | None
    modules_to_save: list[str] | None
    rank: int
    lora_alpha: int
    compression: str
    compression_rank: int
    seed: int
    sizes: Sequence[tuple[int, int]] = ()
    peft_fields: dict | None = None

    @property
    def targets(self) -> dict:
        """Arguments of every config."""
        return {"target_modules": self.target_modules, "modules_to_save": self.modules_to_save}


def _onelora(parts: Sequence[str], options: Options) -> PeftConfig:
    uses = {f"use_{part}": part in parts for part in ("sum", "bias", "scale")}
    if "sum" in parts:
        uses |= {
            "compression": options.compression,
            "compression_seed": options.seed % 2**32,
            "compression_rank": options.compression_rank,
        }
    return OneLoraConfig(**options.targets, **uses)


def _lora(options: Options, **kwargs: bool) -> PeftConfig:
    return LoraConfig(r=options.rank, lora_alpha=options.lora_alpha, **options.targets, **kwargs)


def _vera(options: Options) -> PeftConfig:
    # Save the shared projections: PEFT can rebuild them from the seed, but warns that machines may differ.
    return VeraConfig(r=options.rank, projection_prng_key=options.seed, save_projection=True, **options.targets)


def _peft(method: PeftMethod, options: Options) -> PeftConfig:
    """The config of one of PEFT's own methods."""
    settings = dict(method.settings)
    if method.rank:
        settings[method.rank[0]] = options.rank
    if method.seed:
        settings[method.seed] = options.seed % 2**32
    for name, what in method.sizes.items():
        numbers = [size for pair in options.sizes for size in pair]
        settings[name] = math.gcd(*numbers) if what == "common" else min(outputs for _, outputs in options.sizes)
    return PEFT_TYPE_TO_CONFIG_MAPPING[method.kind](**settings, **options.targets)


_CONFIGS: dict[str, Callable[[Options], PeftConfig]] = {
    "lora": _lora,
    "dora": lambda options: _lora(options, use_dora=True),
    "vera": _vera,
    "mora1": lambda options: MoraConfig(mora_type=SHARING, **options.targets),
    "mora6": lambda options: MoraConfig(mora_type=ROTATING, **options.targets),
}


def _config(row: Method, options: Options) -> PeftConfig:
    """The PEFT config of a method; 1LoRA's config without parts is used to only train modules whole."""
    if options.peft_fields:
        return make_config(options.peft_fields, options.targets, "--peft_config")
    of_peft = row.peft and partial(_peft, row.peft)
    make = row.config or of_peft or _CONFIGS.get(row.name) or partial(_onelora, row.parts)
    return make(options)


def apply_method(
    model: nn.Module,
    method: str,
    adaptation: Adaptation,
    *,
    rank: int | None = None,
    lora_alpha: int | None = None,
    compression: str = "sum",
    compression_rank: int | None = None,
    target_modules: str | None = None,
    seed: int = 0,
    extra_modules_to_save: Sequence[str] = (),
    peft_fields: dict | None = None,
    adapter_name: str = "default",
    quantize: str = "none",
) -> PeftModel:
    """Freeze ``model`` and apply a method to it; the result saves, loads, switches and merges like any PEFT model.

    ``head`` trains only ``adaptation.whole_modules``. ``full`` trains a copy of every module with parameters;
    parameters of the root itself (timm's ``pos_embed``, ``cls_token``) stay frozen. Trained parameters are fp32 even on
    a bf16 model.

    Args:
        method: a name in `methods.names.METHODS` or a combination of parts, see `methods.names.find_method`.
        rank: for methods that have one; default: `Method.rank`. lora_alpha: for lora and dora; default: the rank (a
            scale of 1).
        compression: "sum", "random", "singular" or "subspace", for methods with sum. compression_rank: directions of
            "subspace", by default 16.
        seed: of random compression and initial values.
        target_modules: adapt only those of ``adaptation.target_modules`` whose full name contains a match of this
            regular expression (``attn`` for the attention, ``blocks\\.1[01]\\.`` for two blocks); None adapts all.
        extra_modules_to_save: full names of further modules to train whole.
        peft_fields: fields of a PEFT config (see `methods.peft_config`) that replace the method's own settings. Layers
            that it names are matched as PEFT matches them.
        quantize: "int8" and "nf4" store the weights of ``adaptation.target_modules`` in 8 or 4 bits, in place
            (`tuners.quantised`).

    Raises:
        InputError: unknown method, an option that the method does not have, modules that do not exist or that the
            method cannot adapt. `NotApplicable` if there is nothing to train.
    """
    row = find_method(method)
    check_options(row, rank, lora_alpha, compression, target_modules, compression_rank)
    check_quantize(row, quantize, peft_fields)
    whole = _modules_trained_whole(model, row, adaptation, extra_modules_to_save)
    linears = adaptation.target_modules if target_modules is None else _chosen(adaptation, target_modules)
    on_norms = row.peft is not None and row.peft.on_norms
    if on_norms:
        linears = adaptation.norm_modules
    targets = [name for name in linears if not _is_under(name, whole)] if row.adapts_layers else []
    if row.adapts_layers and not targets:
        raise NotApplicable(f"method {row.name}: this model has no linear layer to adapt")
    if not row.adapts_layers and not whole:
        raise NotApplicable(f"method {row.name} trains nothing on this model: it has no such modules")
    rank = rank or row.rank or 1
    options = Options(
        target_modules=exact_pattern(targets) if targets else None,
        modules_to_save=whole or None,
        rank=rank,
        lora_alpha=rank if lora_alpha is None else lora_alpha,
        compression=compression,
        compression_rank=compression_rank or DEFAULT_RANK,
        seed=seed,
        sizes=[_size_of(model.get_submodule(name)) for name in targets],
        peft_fields=peft_fields,
    )
    with _bad_input(row, options):
        config = _config(row, options)
    if peft_fields:
        require_matches(config, [name for name, _ in model.named_modules()], "--peft_config")
    if peft_fields and peft_fields.get("target_modules"):
        targets = [name for name, _ in model.named_modules() if check_target_module_exists(config, name)]
        if not targets:
            raise InputError("--peft_config: its target_modules match no module of this model")
    if not on_norms:
        hosts.check_adaptable(model, targets)
    hosts.check_trainable_whole(model, whole)
    if row.peft and row.peft.reads_weights and any(parameter.is_meta for parameter in model.parameters()):
        raise NotApplicable(
            f"method {row.name} starts from the base's weights: its parameters cannot be counted without them"
        )
    if quantize != "none":
        quantise_linears(model, [name for name in adaptation.target_modules if not _is_under(name, whole)], quantize)
    with seeded(seed), _bad_input(row, options):
        adapted = get_peft_model(model, config, adapter_name=adapter_name)
    _check_outcome(adapted, row, targets, config.modules_to_save or [])
    _make_ready(adapted, adapter_name, {"ln_tuning_layers": targets if on_norms else [], "modules_to_save": whole})
    adapted.whole_modules = tuple(adaptation.whole_modules)
    return adapted


def _make_ready(adapted: PeftModel, adapter_name: str, copies: dict[str, Sequence[str]]) -> None:
    """Remaining setup before training, after PEFT's own.

    Args:
        copies: full names of the modules whose copies are trained, by the wrapper's attribute that holds the copies.
    """
    if changes_base(adapted.active_peft_config):
        keep_initial_values(adapted, adapter_name)
    shortcuts.call_adapted_layers(adapted)
    for attribute, names in copies.items():
        for name in names:
            train_in_float32(getattr(adapted.get_base_model().get_submodule(name), attribute)[adapter_name])


@contextlib.contextmanager
def _bad_input(row: Method, options: Options) -> Iterator[None]:
    """Report PEFT's errors about one of its own methods, or about settings from a file, as bad input.

    Errors of other methods are bugs, and running out of memory is neither.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except (ValueError, TypeError, RuntimeError, AssertionError, NotImplementedError) as error:
        if row.peft is None and options.peft_fields is None:
            raise
        raise InputError(f"method {row.name} cannot be applied to this model: {one_line(error, 300)}") from error


def _size_of(module: nn.Module) -> tuple[int, int]:
    return getattr(module, "in_features", 1), getattr(module, "out_features", 1)


def trainable_parameters(model: nn.Module) -> int:
    """Number of trained parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def saved_parameters(model: PeftModel, adapter_name: str = "default") -> int:
    """Number of parameters in the adapter file, including saved but untrained ones (VeRA's shared projections)."""
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return sum(tensor.numel() for tensor in state.values())


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of ``adaptation.whole_modules`` (classification head, label table), by full name.

    They belong to the task, not the method: they have a separate learning rate and are counted separately. Norms
    trained by a method, and everything else that ``full`` trains, are not included. Empty for models without
    `apply_method`.
    """
    heads = getattr(model, "whole_modules", ())
    plain = {
        name: re.sub(r"^base_model\.model\.|modules_to_save\.[^.]+\.", "", name)
        for name, _ in model.named_parameters()
    }
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and _is_under(plain[name], heads)
    }


def _chosen(adaptation: Adaptation, expression: str) -> list[str]:
    """The layers whose names contain a match of ``expression``."""
    try:
        chosen = [name for name in adaptation.target_modules if re.search(expression, name)]
    except re.error as error:
        raise InputError(f"target_modules={expression!r} is not a regular expression: {error}") from error
    if not chosen:
        kinds = {re.sub(r"\d+", "N", name): None for name in adaptation.target_modules}
        raise InputError(f"target_modules={expression!r} matches no layer; the layers are {', '.join(kinds)}")
    return chosen


def _modules_trained_whole(model: nn.Module, row: Method, adaptation: Adaptation, extra: Sequence[str]) -> list[str]:
    names = [*adaptation.whole_modules, *extra]
    names += adaptation.norm_modules if row.trains_norms else []
    known = {name for name, _ in model.named_modules()}
    for name in names:
        if name not in known:
            raise InputError(f"no module is called {name!r}{nearest(name, known, 'module')}")
    names = list(_parts_of(model)) if row.trains_all else list(dict.fromkeys(names))
    return [name for name in names if not _is_under(name.rpartition(".")[0], names)]


def _parts_of(model: nn.Module, prefix: str = "") -> Iterable[str]:
    """Names of the parts that ``full`` trains: the children with parameters.

    Descends into lists and sequences, which hosts iterate over, and into transformers models without direct parameters,
    on which hosts call other methods than ``forward``: a wrapper around either would be bypassed.
    """
    for name, child in model.named_children():
        is_model = isinstance(child, PreTrainedModel) and not any(True for _ in child.parameters(recurse=False))
        if is_model or isinstance(child, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
            yield from _parts_of(child, f"{prefix}{name}.")
        elif not isinstance(child, (nn.ParameterList, nn.ParameterDict)) and any(True for _ in child.parameters()):
            yield f"{prefix}{name}"


def _is_under(name: str, roots: Sequence[str]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def _check_outcome(model: PeftModel, row: Method, targets: Sequence[str], whole: Sequence[str]) -> None:
    """Raise an `InputError` if PEFT did not adapt or wrap exactly what was asked for."""
    modules = dict(model.get_base_model().named_modules())
    left_out = [name for name in targets if not isinstance(modules.get(name), BaseTunerLayer)]
    if left_out:
        raise InputError(f"method {row.name} cannot adapt {listed(left_out)} on this model")
    wrapped = [name for name, module in modules.items() if isinstance(module, ModulesToSaveWrapper)]
    extra = [name for name in wrapped if name not in whole and any(True for _ in modules[name].parameters())]
    if extra:
        raise InputError(
            f"method {row.name}: PEFT takes {listed(extra)} for {listed(whole)}, because their names end alike"
        )
