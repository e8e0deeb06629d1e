"""Makes our methods known to PEFT, and is the only place that does: extends the closed enum `PeftType`, registers."""

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method


def peft_type(name: str) -> PeftType:
    """The `PeftType` member named ``name`` in upper case; added to the enum if PEFT does not have it."""
    value = name.upper()
    if value not in PeftType.__members__:
        member = str.__new__(PeftType, value)
        member._name_, member._value_ = value, value
        # type.__setattr__ bypasses EnumType, which guards its members; the maps make lookups by name and value work.
        type.__setattr__(PeftType, value, member)
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = member
        PeftType._value2member_map_[value] = member
    return PeftType[value]


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Register a method with PEFT as ``name``; a second call for the same name does nothing."""
    if peft_type(name) not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
