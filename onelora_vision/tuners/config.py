"""Shared by the configs of our methods: the fields that name modules, and checks of their values."""

from dataclasses import dataclass, field

from peft import PeftConfig

from onelora_vision.errors import InputError, nearest


@dataclass
class TargetedConfig(PeftConfig):
    """Base class of PEFT configs for methods that adapt linear layers.

    Args:
        target_modules: module names (matched as in PEFT: the full name, or the end of a dotted name), a regular
            expression for the full name, or ``"all-linear"``. Linear layers only.
        exclude_modules: names of the modules to leave unchanged, or a regular expression for them.
        layers_to_transform: indices of the layers to adapt; requires ``target_modules`` to be a list.
        layers_pattern: name of the list that holds these layers (``blocks``).
        modules_to_save: modules to train and save whole: a full name, or the end of a dotted name.

    Raises:
        InputError: (a ValueError) a value is invalid; the message names the field and the value.
    """

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Linear layers to adapt."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave alone."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layer numbers to adapt."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of layers."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved whole."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_targets(self)


def check_choice(name: str, value: object, choices: tuple) -> None:
    """Refuse a ``value`` of the field ``name`` that is not in ``choices``."""
    if value not in choices:
        raise InputError(f"{name}={value!r} is not possible{nearest(str(value), choices, 'value')}")


def check_targets(config: PeftConfig) -> None:
    """Refuse target fields with wrong types or in contradiction; convert lists of targets to sets, as PEFT does."""
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
