"""Fine-tune image models with one trainable vector per layer; importing registers 1LoRA and MoRA with PEFT.

Importing is cheap: the names below are imported on first use, and the methods are registered when PEFT is imported.
"""

import importlib
from typing import TYPE_CHECKING

from onelora_vision.registration import register_with_peft

if TYPE_CHECKING:
    from onelora_vision.errors import InputError
    from onelora_vision.inference.loading import load_adapted
    from onelora_vision.methods.apply import apply_method
    from onelora_vision.methods.names import METHODS
    from onelora_vision.tuners import MoraConfig, OneLoraConfig, probe_gradients

__version__ = "0.2.0"

__all__ = ["METHODS", "InputError", "MoraConfig", "OneLoraConfig", "apply_method", "load_adapted", "probe_gradients"]

_MODULES = {
    "InputError": "errors",
    "METHODS": "methods.names",
    "apply_method": "methods.apply",
    "load_adapted": "inference.loading",
    "MoraConfig": "tuners",
    "OneLoraConfig": "tuners",
    "probe_gradients": "tuners",
}

register_with_peft()


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
