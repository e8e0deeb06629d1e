"""Validation of an adapter's config and tensors before anything is built from them.

A config decides what a library does when the adapter is loaded. PEFT's LoRA config can name a Python module to import,
repeat layers, or rewrite the base's weights, and a huge rank can use up all memory (for expressions, see
`tuners.matching`). Only plain configs are accepted, with a complete set of tensors of the promised types and shapes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields

import torch
from peft import AdaLoraConfig, PeftConfig, TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from onelora_vision.adapters.container import config_record
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.adapters.kinds import KINDS, Kind, kind_of
from onelora_vision.adapters.layout import Layout
from onelora_vision.backbones.table import TASKS
from onelora_vision.errors import InputError, listed, one_line
from onelora_vision.storage.weights import check_numbers
from onelora_vision.tuners.matching import check_fields

_COMMON = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
           "inference_mode", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform",
           "layers_pattern"}  # fmt: skip
_NUMBERS = {"r": int, "lora_alpha": (int, float), "lora_dropout": (int, float), "vera_dropout": (int, float), "miss_dropout": (int, float), "mini_r": int,
            "projection_prng_key": int, "d_initial": (int, float)}  # fmt: skip
_NO_SIZES = ("seed", "prng", "step", "warmup", "tinit", "tfinal")  # in names of numbers that are not sizes
_MODEST = 512  # sizes up to this need no justification by the tensors


def parse_config(text: str, where: str) -> PeftConfig:
    """Parse a PEFT config from JSON.

    Raises:
        InputError: the text is not JSON, a method or field is unknown, or a field does more than describe an adapter.
    """
    record = config_record(text, where)
    kind = KINDS[record["peft_type"]]
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind.name]
    _check_fields(record, kind, config_class, where)
    known = {f.name for f in dataclass_fields(config_class)}
    foreign = sorted(
        name for name, value in record.items() if name not in known and value not in (None, False, [], {})
    )
    if foreign:
        raise InputError(f"{where}: config field {one_line(foreign[0], 60)!r} is not a field of {kind.name}")
    record = {name: value for name, value in record.items() if name in known}  # without a newer PEFT's fields
    try:
        return config_class.from_peft_type(**record)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: bad adapter_config.json ({one_line(error)})") from error


def _check_fields(record: dict, kind: Kind, config_class: type[PeftConfig], where: str) -> None:
    if not kind.is_ours:
        defaults = _defaults(config_class)
        for name, value in record.items():
            if name in kind.free_fields | kind.choices.keys() | _COMMON or _same(value, defaults.get(name)):
                continue
            if kind.free_fields or not _is_plain(value, defaults.get(name)):
                raise InputError(f"{where}: config field {name[:60]!r} = {one_line(repr(value), 60)} is not accepted")
    for name, types in _NUMBERS.items():
        value = record.get(name, 1)
        if value is None and kind.is_opaque:  # for an optional field, its default was allowed above
            continue
        if isinstance(value, bool) or not isinstance(value, types) or not abs(value) < 2**63:
            raise InputError(f"{where}: config field {name} = {one_line(repr(value), 60)} is not possible")
    for name, choice in kind.choices.items():
        if record.get(name, choice.values[0]) not in choice.values:
            reason = f" ({choice.reason})" if choice.reason else ""
            raise InputError(f"{where}: {name} = {one_line(record[name], 60)!r} is not accepted{reason}")
    if record.get("task_type") not in (None, *(task.value for task in TaskType)):
        raise InputError(f"{where}: task_type {one_line(repr(record['task_type']), 60)} is unknown")
    check_fields(record, where)


def _defaults(config_class: type[PeftConfig]) -> dict:
    """The default values of a config's fields. AdaLoRA has no default for its number of steps."""
    required = {"total_step": 1} if config_class is AdaLoraConfig else {}
    return config_class(**required).to_dict()


def _is_plain(value: object, default: object) -> bool:
    """Whether a config field of an opaque kind is a simple setting like its default: a number, a switch or a word."""
    if isinstance(value, str):
        return isinstance(default, (str, bool)) and re.fullmatch(r"[\w.-]{1,40}", value) is not None
    if isinstance(value, bool):
        return default is None or isinstance(default, (bool, str))
    numbers = (int, float)
    return isinstance(value, numbers) and abs(value) < 2**63 and (default is None or isinstance(default, numbers))


def _same(value: object, default: object) -> bool:
    if value in (None, False, [], {}) and default in (None, False, [], {}):
        return True
    default = json.loads(json.dumps(default, default=lambda o: sorted(o) if isinstance(o, set) else vars(o)))
    return value == default


def check_tensors(config: PeftConfig, layout: Layout, where: str, *, finite: bool = True) -> None:
    """Check that the tensors match ``config``.

    Raises:
        InputError: there are no tensors, a part is unexpected or missing in some layers, shapes or types are wrong, or,
            with ``finite``, values are NaN or infinite.
    """
    kind = kind_of(config)
    if not layout.layers and not layout.whole and not layout.shared:
        raise InputError(f"{where}: holds no tensors")
    if kind.is_opaque:
        _check_numbers_asked_for(config, layout, where)
    else:
        _check_parts(config, kind, layout, where)
        _check_ranks(config, kind, layout, where)
    for module, parts in layout.whole.items():
        if empty := next((part for part, tensor in parts.items() if tensor.numel() == 0), None):
            raise InputError(f"{where}: {one_line(f'{module}.{empty}', 100)} holds no values")
    check_numbers(layout.to_tensors(), where, finite=finite)


def _check_parts(config: PeftConfig, kind: Kind, layout: Layout, where: str) -> None:
    """Check that each layer has the parts that the config promises."""
    expected = kind.expected_parts(config)
    for module, parts in layout.layers.items():
        if set(parts) != expected:
            missing, foreign = sorted(expected - set(parts)), sorted(set(parts) - expected)
            raise InputError(f"{where}: {module} lacks {missing}" if missing else f"{where}: {module} has {foreign}")
        for part, tensor in parts.items():
            _check_tensor(f"{where}: {module}.{part}", kind.parts[part].dimensions, tensor)


def _check_numbers_asked_for(config: PeftConfig, layout: Layout, where: str) -> None:
    """Check that no rank or other size in an opaque kind's config exceeds what the tensors' dimensions justify."""
    sides = [max((max(t.shape, default=0) for t in parts.values()), default=0) for parts in layout.layers.values()]
    shared = max((max(tensor.shape, default=0) for tensor in layout.shared.values()), default=0)
    most, defaults = max(_MODEST, min(sides, default=0), shared), _defaults(type(config))
    for name, value in vars(config).items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and not any(word in name for word in _NO_SIZES):
            default = defaults.get(name)
            if not value <= max(most, default if isinstance(default, (int, float)) else 0):
                raise InputError(f"{where}: config field {name} = {value:g} is more than the tensors justify ({most})")


def _check_tensor(where: str, dimensions: tuple[int, ...], tensor: torch.Tensor) -> None:
    if tensor.ndim not in dimensions or tensor.numel() == 0:
        raise InputError(f"{where} has shape {tuple(tensor.shape)}, expected {dimensions[0]} dimension(s)")
    if not tensor.is_floating_point():
        raise InputError(f"{where} is {tensor.dtype}, expected a floating-point type")


def _check_ranks(config: PeftConfig, kind: Kind, layout: Layout, where: str) -> None:
    """Check that the config's rank matches the tensors, since a larger one could exhaust the memory."""
    if kind.rank is None or not layout.layers:
        return
    name, part = kind.rank
    asked = getattr(config, name, None)
    if asked is None:
        return
    patterns: Mapping = getattr(config, "rank_pattern", None) or {}
    found = {parts[part].shape[0] for parts in layout.layers.values()}
    wanted = {asked, *patterns.values()}
    if not found <= wanted or max(wanted) > max(found):
        raise InputError(f"{where}: the config's rank is {sorted(wanted)}, the tensors' {sorted(found)}")


def check_classes(info: AdapterInfo, layout: Layout, where: str) -> None:
    """Check that there are as many class names as the file's head or label table has rows.

    A label table has one additional row for "no class". Exports are not checked: their table has the base's size.

    Raises:
        InputError: the numbers differ.
    """
    rows = {tensor.shape[0] for parts in layout.whole.values() for tensor in parts.values() if tensor.ndim > 1}
    others = TASKS[info.task].other_rows if info.task in TASKS else None
    if not info.class_names or not rows or "exported" in info.extra or others is None:
        return
    expected = len(info.class_names) + others
    if expected not in rows:
        found = listed(map(str, sorted(rows)))
        raise InputError(f"{where}: {len(info.class_names)} class names need {expected} rows, but it has {found}")
    if info.null_class not in (None, len(info.class_names)):
        raise InputError(f"{where}: null class {info.null_class} with {len(info.class_names)} class names")
