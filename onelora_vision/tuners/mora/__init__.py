"""MoRA (arXiv 2405.12130) as a PEFT method."""

from ..registry import register
from .config import MoraConfig
from .layer import MoraLayer
from .model import MoraModel

__all__ = ["MoraConfig", "MoraLayer", "MoraModel"]

register("mora", MoraConfig, MoraModel)
