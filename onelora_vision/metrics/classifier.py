"""The small convolutional classifier behind `fd_embedded` and `class_accuracy` of the embedded generation job."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from onelora_vision.storage.files import write_json
from onelora_vision.storage.outputs import folder_output


class GlyphClassifier(nn.Module):
    """Four convolution stages followed by the mean over the image: 64 features, and one logit per class.

    Args:
        class_names: the classes of the logits. widths: channels of the stages; the last is the number of features.
    """

    def __init__(self, class_names: list[str], widths: tuple[int, ...] = (24, 32, 48, 64)):
        super().__init__()
        self.class_names = list(class_names)
        self.widths = tuple(widths)
        stages = []
        for number, (before, after) in enumerate(zip((3, *widths), widths)):
            stages += [
                nn.Conv2d(before, after, 3, stride=1 if number == 0 else 2, padding=1),
                nn.GroupNorm(8, after),
                nn.GELU(),
                nn.Conv2d(after, after, 3, padding=1),
                nn.GroupNorm(8, after),
                nn.GELU(),
            ]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], len(class_names))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, 3, H, W) in [0, 1] -> features (N, 64) and logits (N, classes)."""
        features = self.stages(images * 2 - 1).mean((2, 3))
        return features, self.head(features)

    def save(self, folder: str | os.PathLike, **notes) -> None:
        """Write config.json (with ``notes`` on its training) and model.safetensors in fp16 to ``folder``."""
        with folder_output(folder, "classifier", overwrite=True) as temporary:
            write_json(temporary / "config.json", {"class_names": self.class_names, "widths": self.widths, **notes})
            state = {name: value.half().contiguous() for name, value in self.state_dict().items()}
            save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "GlyphClassifier":
        """Load a classifier written by `save`, in fp32 and eval mode."""
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        model = cls(config["class_names"], tuple(config["widths"]))
        model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        return model.float().eval()
