"""``--peft_config``: any config of PEFT as a method, from a JSON or YAML file."""

from pathlib import Path
from typing import Any

from onelora_vision.errors import InputError, listed, nearest, one_line
from onelora_vision.storage.textfiles import read_text

# Fields that a config file has but that say where it came from, not what is trained.
_ORIGIN = ("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version")
#: LoRA's initialisations that are computed from the training data, in a pass of their own.
_FROM_DATA = ("eva", "corda", "lora_ga", "loftq")


def read_peft_config(path: str | Path) -> dict[str, Any]:
    """The fields of a PEFT config in a JSON or YAML file, such as an ``adapter_config.json``, without where it came from.

    Raises:
        InputError: no such file, not a mapping, no ``peft_type`` or one that is not for linear layers.
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
    """The name of the method that a config is for, which is PEFT's type in lower case.

    Raises:
        InputError: PEFT has no such type, or it is not for linear layers.
    """
    from onelora_vision.methods.names import METHODS

    name = record["peft_type"].lower()
    known = [row.name for row in METHODS.values() if row.peft or row.name in ("lora", "vera", "onelora")]
    if name not in [*known, "mora"]:
        raise InputError(
            f"--peft_config {path}: peft_type {one_line(record['peft_type'], 60)!r} is none that adapts linear "
            f"layers{nearest(name, known, 'type')}"
        )
    return f"mora{record.get('mora_type', 6)}" if name == "mora" else name


def make_config(record: dict[str, Any], targets: dict[str, Any], where: str):
    """The config of PEFT, whose targets and modules trained whole are ``targets`` where ``record`` names none.

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
        raise InputError(f"{where}: {listed(unknown)} is no field of {record['peft_type'].upper()}{hint}")
    if (init := fields.get("init_lora_weights")) in _FROM_DATA:
        raise InputError(
            f"{where}: init_lora_weights={init} reads the training data before the training, which is not done here"
        )
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {one_line(error, 300)}") from error


def changes_base(config) -> bool:
    """Whether LoRA's initialisation takes its first values out of the base's weights (PiSSA, OLoRA)."""
    init = getattr(config, "init_lora_weights", None)
    return isinstance(init, str) and init.startswith(("pissa", "olora"))
