"""Fine-tune image models with one trainable vector per layer; importing registers 1LoRA and MoRA in PEFT."""

from onelora_vision.errors import InputError
from onelora_vision.methods import METHODS, apply_method
from onelora_vision.tuners import MoraConfig, OneLoraConfig, probe_gradients

__version__ = "0.1.0"

__all__ = ["METHODS", "InputError", "MoraConfig", "OneLoraConfig", "apply_method", "probe_gradients"]
