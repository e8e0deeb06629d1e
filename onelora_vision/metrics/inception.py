"""InceptionV3 as FID means it: TensorFlow's weights of 2015, its resize and its pooling, from torch-fidelity."""

import io
from pathlib import Path

import torch

from onelora_vision.errors import InputError
from onelora_vision.metrics.generative import Features, weights_hash
from onelora_vision.runtime.extras import require
from onelora_vision.storage.weights import read_weights

FILE = "weights-inception-2015-12-05-6726825d.pth"
SOURCE = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"

#: As a file name: fetch the weights first.
DOWNLOAD = "download"


class InceptionFeatures(Features):
    """The pooled features of the Fréchet Inception distance: 2048 of them, or an earlier layer's.

    Args:
        weights: a ``.pth`` or ``.safetensors`` file; by default where torch keeps what it downloads, to which
            "download" fetches it if it is not there.
        layer: "2048", or "64", "192", "768" of the layers before.

    Raises:
        InputError: there is no such file, or it holds other weights.
    """

    name = "inception"

    def __init__(self, weights: str | Path | None = None, layer: str = "2048"):
        require("torch_fidelity", "metrics", "FID")
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = _find(weights)
        # torch-fidelity unpickles whatever its file holds: it is handed the tensors alone, read safely here.
        tensors = io.BytesIO()
        torch.save(read_weights(path), tensors)
        tensors.seek(0)
        try:
            self.model = FeatureExtractorInceptionV3(
                "inception-v3-compat", [layer], feature_extractor_weights_path=tensors
            )
        except RuntimeError as error:
            raise InputError(f"{path}: not the weights of FID's InceptionV3; take {SOURCE}") from error
        self.dim = int(layer)
        self.weights_hash = weights_hash(self.model)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, None]:
        device = next(self.model.parameters()).device
        return self.model((images * 255).round().to(device, torch.uint8))[0], None


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
