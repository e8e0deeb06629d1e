"""1LoRA and its family (arXiv 2503.08333) as a PEFT method."""

from onelora_vision.tuners.onelora.config import OneLoraConfig
from onelora_vision.tuners.onelora.layer import OneLoraLayer
from onelora_vision.tuners.onelora.model import OneLoraModel
from onelora_vision.tuners.registry import register

__all__ = ["OneLoraConfig", "OneLoraLayer", "OneLoraModel"]

register("onelora", OneLoraConfig, OneLoraModel)
