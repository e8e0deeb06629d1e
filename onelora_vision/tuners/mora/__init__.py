"""MoRA (arXiv 2405.12130) as a PEFT method."""

from onelora_vision.tuners.mora.config import MoraConfig
from onelora_vision.tuners.mora.layer import MoraLayer
from onelora_vision.tuners.mora.model import MoraModel
from onelora_vision.tuners.registry import register

__all__ = ["MoraConfig", "MoraLayer", "MoraModel"]

register("mora", MoraConfig, MoraModel)
