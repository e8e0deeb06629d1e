"""1LoRA as a PEFT tuner."""

from onelora_vision.tuners.model import StrictTuner
from onelora_vision.tuners.onelora.layer import OneLoraLayer


class OneLoraModel(StrictTuner):
    """Wraps the targeted linear layers of a model in `OneLoraLayer`s (see `OneLoraConfig`)."""

    prefix = "onelora_"
    tuner_layer_cls = OneLoraLayer
