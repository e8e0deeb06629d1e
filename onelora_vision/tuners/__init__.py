"""This package's PEFT methods. They register with PEFT when PEFT is imported, see `onelora_vision.registration`."""

import importlib
from typing import TYPE_CHECKING

import peft  # noqa: F401 - must come first: it registers our methods, which imports the modules of this folder

if TYPE_CHECKING:
    from onelora_vision.tuners.checks import check_load_result, probe_gradients
    from onelora_vision.tuners.mora import MoraConfig, MoraModel
    from onelora_vision.tuners.onelora import OneLoraConfig, OneLoraModel

__all__ = ["MoraConfig", "MoraModel", "OneLoraConfig", "OneLoraModel", "check_load_result", "probe_gradients"]

_MODULES = {
    "MoraConfig": "mora",
    "MoraModel": "mora",
    "OneLoraConfig": "onelora",
    "OneLoraModel": "onelora",
    "check_load_result": "checks",
    "probe_gradients": "checks",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
