"""``--peft_config``: any PEFT config as a method, from a JSON or YAML file."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from onelora_vision.errors import InputError, listed, nearest, one_line
from onelora_vision.storage.textfiles import read_text

# Fields of a config file that say where it came from, not what is trained.
_ORIGIN = ("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version")
_FROM_DATA = "reads the training data before training, which is not supported"
#: LoRA initialisations that are refused, and why.
_UNSUPPORTED = {
    "eva": _FROM_DATA,
    "corda": _FROM_DATA,
    "lora_ga": _FROM_DATA,
    "loftq": "quantises the base, which is not supported",
}


def read_peft_config(path: str | Path) -> dict[str, Any]:
    """The fields of a PEFT config in a JSON or YAML file, such as ``adapter_config.json``, except those on its origin.

    Raises:
        InputError: no such file, not a mapping, or no ``peft_type``.
    """
    import yaml

    try:
        record = yaml.safe_load(read_text(path, "--peft_config"))  # JSON is YAML
    except yaml.YAMLError as error:
        raise InputError(f"--peft_config {path}: neither JSON nor YAML ({one_line(error, 200)})") from error
    if not isinstance(record, dict) or not isinstance(record.get("peft_type"), str):
        raise InputError(
            f"--peft_config {path}: expected fields of a PEFT config, among them peft_type: LORA or another"
        )
    return {str(name): value for name, value in record.items() if name not in _ORIGIN}


def method_of(record: dict[str, Any], path: str | Path) -> str:
    """The name of the method that a config is for: its PEFT type in lower case.

    Raises:
        InputError: PEFT has no such type, or it is not for linear layers.
    """
    from onelora_vision.methods.names import METHODS

    name = record["peft_type"].lower()
    of_peft = [row.name for row in METHODS.values() if row.peft and row.name == row.peft.kind.lower()]
    known = [*of_peft, "lora", "vera", "onelora"]
    if name not in [*known, "mora"]:
        raise InputError(
            f"--peft_config {path}: peft_type {one_line(record['peft_type'], 60)!r} does not adapt linear "
            f"layers{nearest(name, known, 'type')}"
        )
    return f"mora{record.get('mora_type', 6)}" if name == "mora" else name


def make_config(record: dict[str, Any], targets: dict[str, Any], where: str):
    """Make the PEFT config. The defaults of its targets are ``targets``, whose modules trained whole are always added.

    Raises:
        InputError: a field that the type does not have, or a value that it refuses.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    fields = {name: value for name, value in record.items() if name != "peft_type"}
    whole = [*(fields.pop("modules_to_save", None) or []), *(targets["modules_to_save"] or [])]
    fields = {**fields, "modules_to_save": list(dict.fromkeys(whole)) or None}
    if not fields.get("target_modules"):
        fields["target_modules"] = targets["target_modules"]
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[record["peft_type"].upper()]
    known = set(kind.__dataclass_fields__)
    if unknown := sorted(set(fields) - known):
        hint = nearest(unknown[0], known, "field")
        raise InputError(f"{where}: {listed(unknown)} is not a field of {record['peft_type'].upper()}{hint}")
    _check_types(kind, fields, where)
    if (init := fields.get("init_lora_weights")) in _UNSUPPORTED:
        raise InputError(f"{where}: init_lora_weights={init} {_UNSUPPORTED[init]}")
    if (bias := fields.get("bias", "none")) not in ("none", None, False):
        raise InputError(
            f"{where}: bias={bias} trains the base's own biases, which adapter files do not hold here; use bias: none, or "
            "--method bitfit"
        )
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {one_line(error, 300)}") from error


def _check_types(kind: type, fields: dict[str, Any], where: str) -> None:
    """Refuse values that are not of the numeric or boolean types that PEFT declares; it checks the rest itself.

    Values of int fields may be fractional: converting a rank-stabilised LoRA to a plain one gives a fractional scale.
    """
    expected = {
        "bool": (bool, "true or false"),
        "int": ((int, float), "a number"),
        "float": ((int, float), "a number"),
    }
    for name, value in fields.items():
        declared = kind.__dataclass_fields__[name].type
        declared = getattr(declared, "__name__", declared)  # a type, or its name
        if declared not in expected:
            continue
        types, words = expected[declared]
        if not isinstance(value, types) or (isinstance(value, bool) and declared != "bool"):
            raise InputError(f"{where}: {name} is {one_line(repr(value), 60)}, but must be {words}")


def require_matches(config, names: Collection[str], where: str) -> None:
    """Check that every module and layer that a config lists is one of the model's modules ``names``.

    Raises:
        InputError: an entry is not the end of any name, and would have no effect.
    """
    for field in ("target_modules", "modules_to_save", "exclude_modules"):
        entries = getattr(config, field, None)
        for entry in entries if isinstance(entries, (list, tuple, set)) else ():
            if not any(name == entry or name.endswith(f".{entry}") for name in names):
                ends = {name.rpartition(".")[2] for name in names}
                raise InputError(
                    f"{where}: {field}: {entry!r} is not a module of this model{nearest(entry, ends, 'module')}"
                )
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field, None) or ():
            if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
                raise InputError(f"{where}: {field}: {pattern!r} matches no module of this model")


def changes_base(config) -> bool:
    """Whether LoRA's initialisation subtracts its initial values from the base's weights (PiSSA, OLoRA)."""
    init = getattr(config, "init_lora_weights", None)
    return isinstance(init, str) and init.startswith(("pissa", "olora"))
