"""InceptionV3 with random weights, in a file as torch-fidelity's."""

import io
from pathlib import Path
from unittest import mock

import torch


def write_inception(path: Path, layers: tuple[str, ...] = ("2048", "logits_unbiased")) -> Path:
    """Save FID's InceptionV3 with random weights that let a signal through; returns the path."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None):
        model = FeatureExtractorInceptionV3("inception-v3-compat", [*layers], feature_extractor_weights_path=nothing)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return path
