"""1LoRA and its family (arXiv 2503.08333) as a PEFT method."""

from ..registry import register
from .config import OneLoraConfig
from .layer import OneLoraLayer
from .model import OneLoraModel

__all__ = ["OneLoraConfig", "OneLoraLayer", "OneLoraModel"]

register("onelora", OneLoraConfig, OneLoraModel)
