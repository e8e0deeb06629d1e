"""How good generated images are: Fréchet distance and class accuracy in the features of a named model.

The two belong together: a distance falls when the style is right, whatever the pictures show; the class accuracy says
how often the picture shows what was asked for.
"""

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import nn

from onelora_vision import embedded
from onelora_vision.errors import InputError
from onelora_vision.metrics.classifier import GlyphClassifier
from onelora_vision.metrics.frechet import FeatureStatistics, frechet_distance


class Features(ABC):
    """A frozen model that images are measured with.

    Attributes:
        name: goes into the metric's name: ``fd_<name>``. weights_hash: of the weights, for the protocol line.
        dim: number of features. class_names: of the logits, or empty where there are none.
    """

    name: str
    weights_hash: str
    dim: int
    class_names: Sequence[str] = ()

    @abstractmethod
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Images (N, 3, H, W) in [0, 1] -> features (N, dim), and logits (N, classes) or None."""


class EmbeddedFeatures(Features):
    """The shipped classifier of 0-9 and A-Z, trained on printed glyphs and on the handwriting's training split."""

    name = "embedded"

    def __init__(self):
        self.model = GlyphClassifier.load(embedded.FEATURES)
        self.class_names = self.model.class_names
        self.dim = self.model.head.in_features
        self.weights_hash = weights_hash(self.model)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model(images.to(self.model.head.weight))


def weights_hash(model: nn.Module) -> str:
    """First 12 hex digits of the SHA-256 of a model's tensors, in order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def measure(
    features: Features, images: torch.Tensor, batch_size: int = 250
) -> tuple[FeatureStatistics, torch.Tensor | None]:
    """Statistics of the features of images (N, 3, H, W) in [0, 1], and their logits (N, classes) or None."""
    statistics, logits = FeatureStatistics(features.dim), []
    for part in images.split(batch_size):
        values, scores = features(part)
        statistics.update(values)
        if scores is not None:
            logits.append(scores.float().cpu())
    return statistics, torch.cat(logits) if logits else None


def evaluate_images(
    images: torch.Tensor,
    labels: Sequence[int],
    class_names: Sequence[str],
    reference: FeatureStatistics,
    features: Features,
) -> dict[str, float]:
    """``fd_<name>`` of generated images against the reference and, where the features' model classifies,
    ``class_accuracy``.

    Args:
        images: (N, 3, H, W) in [0, 1]. labels: the class asked for in each image, as indices into ``class_names``.
        reference: statistics of real images, from `measure`.
    """
    statistics, logits = measure(features, images)
    metrics = {f"fd_{features.name}": frechet_distance(statistics, reference)}
    if logits is not None:
        metrics["class_accuracy"] = class_accuracy(logits, labels, class_names, features.class_names)
    return metrics


def class_accuracy(
    logits: torch.Tensor, labels: Sequence[int], class_names: Sequence[str], known_names: Sequence[str]
) -> float:
    """Share of images whose highest logit, among ``class_names`` alone, is the class asked for.

    Only the classes that could have been asked for compete: a 0 is not wrong for looking like an O.

    Raises:
        InputError: for a class that the classifier does not know.
    """
    unknown = [name for name in class_names if name not in known_names]
    if unknown:
        raise InputError(f"the classifier of the samples does not know the classes {unknown}: it knows {known_names}")
    columns = [list(known_names).index(name) for name in class_names]
    right = logits[:, columns].argmax(1) == torch.as_tensor(labels)
    return right.double().mean().item()


@torch.no_grad()
def autoencoder_floor(
    vae: nn.Module,
    images: torch.Tensor,
    reference: FeatureStatistics,
    features: Features,
    batch_size: int = 250,
    on_batch: Callable[[int], None] | None = None,
) -> float:
    """Fréchet distance of the reference images, encoded and decoded, to themselves: no sampler can be expected to
    come below it. ``on_batch`` is called with the number of images of each batch as it is done."""
    parameter = next(vae.parameters())
    statistics = FeatureStatistics(features.dim)
    for part in images.split(batch_size):
        pixels = (part * 2 - 1).to(parameter.device, parameter.dtype)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        statistics.update(features((decoded.float() / 2 + 0.5).clamp(0, 1).cpu())[0])
        if on_batch is not None:
            on_batch(len(part))
    return frechet_distance(statistics, reference)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Everything that a Fréchet distance depends on beside the model: it is printed and saved with every figure.

    Attributes:
        generated, reference: numbers of images. split: of the reference. crop, resize: how reference images were cut
            and scaled. sampler, steps, guidance: how the images were made. vae: the autoencoder's name. seed: of the
            samples. ema: whether averaged weights were sampled. features, weights_hash: the model that measured.
    """

    generated: int
    reference: int
    split: str
    crop: str
    resize: str
    sampler: str
    steps: int
    guidance: float
    vae: str
    seed: int
    ema: bool
    features: str
    weights_hash: str

    def line(self) -> str:
        """All fields in one line, ``name=value``."""
        return " ".join(f"{name}={value}" for name, value in dataclasses.asdict(self).items())

    def require_comparable(self, other: "Protocol") -> None:
        """Refuse to compare figures of unlike protocols; only the seed may differ.

        Raises:
            InputError: naming the fields that differ.
        """
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        unlike = [f"{name} {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name]]
        unlike = [difference for difference in unlike if not difference.startswith("seed ")]
        if unlike:
            raise InputError(f"distances of different protocols cannot be compared: {'; '.join(unlike)}")
