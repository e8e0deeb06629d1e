"""The InceptionV3 of FID: TensorFlow's weights of 2015, its resize and its pooling, from torch-fidelity.

The spatial features are those of ADM's evaluation (arXiv 2105.05233): the first 7 channels of TensorFlow's
``mixed_6/conv``, 17 x 17 x 7 values in this order. The logits are without bias, as ADM and torch-fidelity use them for
the Inception Score.
"""

import io
from pathlib import Path

import torch

from onelora_vision.errors import InputError
from onelora_vision.metrics.generative import Features, FeatureSet, weights_hash
from onelora_vision.runtime.extras import require
from onelora_vision.storage.weights import read_weights

FILE = "weights-inception-2015-12-05-6726825d.pth"
SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"

LAST, LOGITS, SPATIAL_CHANNELS = "2048", "logits_unbiased", 7
#: Used as a file name: download the weights first.
DOWNLOAD = "download"


class InceptionFeatures(Features):
    """The pooled features of the Fréchet Inception distance: 2048 of them, or those of an earlier layer.

    The spatial features and the logits are only available with the 2048.

    Args:
        weights: a ``.pth`` or ``.safetensors`` file; default: in torch's download folder, to which "download" downloads
            it if necessary.
        layer: "2048", or "64", "192", "768" for earlier layers.

    Raises:
        InputError: there is no such file, or it holds other weights.
    """

    name = "inception"

    def __init__(self, weights: str | Path | None = None, layer: str = LAST):
        require("torch_fidelity", "metrics", "FID")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = _find(weights)
        # torch-fidelity unpickles whatever its file contains, so it only gets the tensors, which are read safely here.
        tensors = io.BytesIO()
        torch.save(read_weights(path), tensors)
        tensors.seek(0)
        try:
            self.model = FeatureExtractorInceptionV3(
                "inception-v3-compat",
                [layer, LOGITS] if layer == LAST else [layer],
                feature_extractor_weights_path=tensors,
            )
        except RuntimeError as error:
            raise InputError(f"{path}: not the weights of FID's InceptionV3; take {SOURCE}") from error
        self.dim = int(layer)
        self.weights_hash = weights_hash(self.model)
        self._spatial: torch.Tensor | None = None
        if layer == LAST:
            self.model.Mixed_6d.branch1x1.conv.register_forward_hook(self._keep_spatial)

    def _keep_spatial(self, module, args, output: torch.Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> FeatureSet:
        device = next(self.model.parameters()).device
        answers = self.model((images * 255).round().to(device, torch.uint8))
        spatial, self._spatial = self._spatial, None
        return FeatureSet(*answers, spatial=spatial)


def _find(weights: str | Path | None) -> Path:
    kept = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    path = kept if weights in (None, DOWNLOAD) else Path(weights)
    if weights == DOWNLOAD and not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(SOURCE, str(path), hash_prefix="6726825d")
        except (OSError, RuntimeError) as error:
            raise InputError(f"{SOURCE} cannot be downloaded to {path} ({error}): put it there by hand") from None
    if not path.is_file():
        raise InputError(
            f"{path}: no InceptionV3 weights there; download {SOURCE} to that place, or give --fid_weights FILE "
            f"or --fid_weights {DOWNLOAD}"
        )
    return path
