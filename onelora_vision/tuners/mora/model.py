"""MoRA as a PEFT tuner."""

from ..base import StrictTuner
from .layer import MoraLayer


class MoraModel(StrictTuner):
    """Puts `MoraLayer`s around the targeted linear layers of a model (see `MoraConfig`)."""

    prefix = "mora_"
    tuner_layer_cls = MoraLayer
