"""What an adapter's config and tensors must be before anything is built from them.

A config decides what a library does when the adapter is loaded: PEFT's LoRA config can name a Python module to import,
repeat layers, or rewrite the base's weights; a rank can ask for all memory (expressions: `tuners.matching`). Only
plain configs pass, and only tensors that are all there, of the kind and shape that the config promises.
"""

import json
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields

import torch
from peft import LoraConfig, PeftConfig, TaskType, VeraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from onelora_vision.adapters.container import config_record
from onelora_vision.adapters.layout import LORA, MORA, ONELORA, VERA, Layout, kind_of
from onelora_vision.errors import InputError, one_line
from onelora_vision.storage.weights import check_numbers
from onelora_vision.tuners.matching import check_fields

_HARMLESS = {  # fields of PEFT's own configs that may have any value of the right kind
    LORA: {"r", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "use_dora", "lora_bias",
           "rank_pattern", "alpha_pattern", "init_lora_weights"},
    VERA: {"r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial", "fan_in_fan_out", "bias",
           "init_weights"},
}  # fmt: skip
_COMMON = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
           "inference_mode", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform",
           "layers_pattern"}  # fmt: skip
_KINDS = {"r": int, "lora_alpha": (int, float), "lora_dropout": (int, float), "vera_dropout": (int, float),
          "projection_prng_key": int, "d_initial": (int, float)}  # fmt: skip
_PARTS = {
    ONELORA: {"onelora_b", "onelora_beta", "onelora_gamma"},
    MORA: {"mora_m"},
    LORA: {"lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector"},
    VERA: {"vera_lambda_b", "vera_lambda_d"},
}


def parse_config(text: str, where: str) -> PeftConfig:
    """The PEFT config in a JSON text.

    Raises:
        InputError: not JSON, an unknown method or field, or a field that does more than describe an adapter.
    """
    record = config_record(text, where)
    kind = record["peft_type"]
    _check_fields(record, kind, where)
    known = {f.name for f in dataclass_fields(PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
    foreign = sorted(
        name for name, value in record.items() if name not in known and value not in (None, False, [], {})
    )
    if foreign:
        raise InputError(f"{where}: config field {one_line(foreign[0], 60)!r} is none of {kind}")
    record = {name: value for name, value in record.items() if name in known}  # what a newer PEFT leaves empty
    try:
        return PEFT_TYPE_TO_CONFIG_MAPPING[kind].from_peft_type(**record)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: bad adapter_config.json ({one_line(error)})") from error


def _check_fields(record: dict, kind: str, where: str) -> None:
    if kind in _HARMLESS:
        defaults = (LoraConfig if kind == LORA else VeraConfig)().to_dict()
        for name, value in record.items():
            if name not in _HARMLESS[kind] | _COMMON and not _same(value, defaults.get(name)):
                raise InputError(f"{where}: config field {name[:60]!r} = {one_line(repr(value), 60)} is not accepted")
    for name, types in _KINDS.items():
        value = record.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, types) or not abs(value) < 2**63:
            raise InputError(f"{where}: config field {name} = {one_line(repr(value), 60)} is not possible")
    if record.get("init_lora_weights", True) not in (True, False, "gaussian"):
        raise InputError(f"{where}: init_lora_weights = {one_line(record['init_lora_weights'], 60)!r} is not accepted")
    if record.get("task_type") not in (None, *(task.value for task in TaskType)):
        raise InputError(f"{where}: task_type {one_line(repr(record['task_type']), 60)} is unknown")
    check_fields(record, where)


def _same(value: object, default: object) -> bool:
    if value in (None, False, [], {}) and default in (None, False, [], {}):
        return True
    default = json.loads(json.dumps(default, default=lambda o: sorted(o) if isinstance(o, set) else vars(o)))
    return value == default


def check_tensors(config: PeftConfig, layout: Layout, where: str, *, finite: bool = True) -> None:
    """Refuse tensors that are not what ``config`` promises.

    Raises:
        InputError: no tensors, foreign parts, parts that only some layers have, wrong shapes or types, or, with
            ``finite``, NaN and infinity.
    """
    kind = kind_of(config)
    if not layout.layers and not layout.whole:
        raise InputError(f"{where}: holds no tensors")
    expected = _expected_parts(config, kind)
    for module, parts in layout.layers.items():
        if expected is not None and set(parts) != expected:
            missing, foreign = sorted(expected - set(parts)), sorted(set(parts) - expected)
            raise InputError(f"{where}: {module} lacks {missing}" if missing else f"{where}: {module} has {foreign}")
        if foreign := sorted(set(parts) - _PARTS[kind]):
            raise InputError(f"{where}: {module} has {foreign}, which is no part of {kind}")
        for part, tensor in parts.items():
            _check_tensor(f"{where}: {module}.{part}", part, tensor)
    _check_ranks(config, kind, layout, where)
    for module, parts in layout.whole.items():
        if empty := next((part for part, tensor in parts.items() if tensor.numel() == 0), None):
            raise InputError(f"{where}: {one_line(f'{module}.{empty}', 100)} holds no values")
    check_numbers(layout.to_tensors(), where, finite=finite)


def _expected_parts(config: PeftConfig, kind: str) -> set[str] | None:
    if kind == ONELORA:
        used = {"onelora_b": config.use_sum, "onelora_beta": config.use_bias, "onelora_gamma": config.use_scale}
        return {name for name, is_used in used.items() if is_used}
    if kind == LORA:
        options = {"lora_B.bias": config.lora_bias, "lora_magnitude_vector": config.use_dora}
        return {"lora_A.weight", "lora_B.weight"} | {name for name, is_used in options.items() if is_used}
    return _PARTS[kind]


def _check_tensor(where: str, part: str, tensor: torch.Tensor) -> None:
    dimensions = {"lora_A.weight": (2, 4), "lora_B.weight": (2, 4), "mora_m": (2,)}.get(part, (1,))
    if tensor.ndim not in dimensions or tensor.numel() == 0:
        raise InputError(f"{where} has shape {tuple(tensor.shape)}, expected {dimensions[0]} dimension(s)")
    if not tensor.is_floating_point():
        raise InputError(f"{where} is {tensor.dtype}, expected a floating-point type")


def _check_ranks(config: PeftConfig, kind: str, layout: Layout, where: str) -> None:
    """The config's rank is the tensors': a greater one would ask for memory that the file does not justify."""
    asked = {LORA: getattr(config, "r", None), VERA: getattr(config, "r", None), MORA: getattr(config, "r_hat", None)}
    part = {LORA: "lora_A.weight", VERA: "vera_lambda_d", MORA: "mora_m"}.get(kind)
    if part is None or asked[kind] is None or not layout.layers:
        return
    patterns: Mapping = getattr(config, "rank_pattern", None) or {}
    found = {parts[part].shape[0] for parts in layout.layers.values()}
    wanted = {asked[kind], *patterns.values()}
    if not found <= wanted or max(wanted) > max(found):
        raise InputError(f"{where}: the config's rank is {sorted(wanted)}, the tensors' {sorted(found)}")
