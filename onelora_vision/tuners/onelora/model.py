"""1LoRA as a PEFT tuner."""

from onelora_vision.tuners.model import StrictTuner
from onelora_vision.tuners.onelora.layer import OneLoraLayer


class OneLoraModel(StrictTuner):
    """Puts `OneLoraLayer`s around the targeted linear layers of a model (see `OneLoraConfig`)."""

    prefix = "onelora_"
    tuner_layer_cls = OneLoraLayer
