"""PEFT methods of this package; importing it registers them in PEFT."""

from .checks import check_load_result, probe_gradients
from .mora import MoraConfig, MoraModel
from .onelora import OneLoraConfig, OneLoraModel

__all__ = ["MoraConfig", "MoraModel", "OneLoraConfig", "OneLoraModel", "check_load_result", "probe_gradients"]
