"""MoRA as a PEFT tuner."""

from onelora_vision.tuners.model import StrictTuner
from onelora_vision.tuners.mora.layer import MoraLayer


class MoraModel(StrictTuner):
    """Wraps the targeted linear layers of a model in `MoraLayer`s (see `MoraConfig`)."""

    prefix = "mora_"
    tuner_layer_cls = MoraLayer
