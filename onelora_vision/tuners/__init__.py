"""PEFT methods of this package; importing it registers them in PEFT."""

from onelora_vision.tuners.checks import check_load_result, probe_gradients
from onelora_vision.tuners.mora import MoraConfig, MoraModel
from onelora_vision.tuners.onelora import OneLoraConfig, OneLoraModel

__all__ = ["MoraConfig", "MoraModel", "OneLoraConfig", "OneLoraModel", "check_load_result", "probe_gradients"]
