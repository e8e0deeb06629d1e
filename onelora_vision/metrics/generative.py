"""Quality of generated images: distances and class accuracy in the features of a named model.

They complement each other: a distance improves when the style is right, whatever the images show; class accuracy
measures how often an image shows the requested class.
"""

import dataclasses
import functools
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from onelora_vision import embedded
from onelora_vision.errors import InputError, listed
from onelora_vision.metrics.classifier import GlyphClassifier
from onelora_vision.metrics.frechet import FeatureStatistics, frechet_distance
from onelora_vision.metrics.kid import kernel_distance
from onelora_vision.metrics.manifold import density_coverage, precision_recall

MIN_NEIGHBOURS = 6


class Features(ABC):
    """A frozen model for evaluating images.

    Attributes:
        name: used in the metric's name: ``fd_<name>``. weights_hash: of the weights, for the protocol line.
        dim: number of features. class_names: of the logits; empty if there are none. model: the network.
    """

    name: str
    model: nn.Module
    weights_hash: str
    dim: int
    class_names: Sequence[str] = ()

    @abstractmethod
    def __call__(self, images: torch.Tensor) -> "FeatureSet":
        """The model's output for images (N, 3, H, W) in [0, 1]."""

    def to(self, device: torch.device | str) -> "Features":
        """Move the network."""
        self.model.to(device)
        return self


class EmbeddedFeatures(Features):
    """The included classifier of 0-9 and A-Z, trained on printed glyphs and the training split of the handwriting."""

    name = "embedded"

    def __init__(self):
        self.model = GlyphClassifier.load(embedded.FEATURES)
        self.class_names = self.model.class_names
        self.dim = self.model.head.in_features
        self.weights_hash = weights_hash(self.model)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> "FeatureSet":
        return FeatureSet(*self.model(images.to(self.model.head.weight)))


def weights_hash(model: nn.Module) -> str:
    """First 12 hex digits of the SHA-256 of a model's tensors, in order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """A model's output for a set of images.

    Attributes:
        features: (N, D), fp32 on CPU.
        logits: (N, classes), or None if the model is not a classifier.
        spatial: (N, S) features that keep their place in the image, or None if the model has none.
        known, known_spatial: published statistics of features and spatial features; None: those of the images.
    """

    features: torch.Tensor
    logits: torch.Tensor | None = None
    spatial: torch.Tensor | None = None
    known: FeatureStatistics | None = None
    known_spatial: FeatureStatistics | None = None

    def __len__(self) -> int:
        return len(self.features)

    @functools.cached_property
    def statistics(self) -> FeatureStatistics:
        """Mean and covariance of the features, in float64."""
        return self.known or _statistics_of(self.features)

    @functools.cached_property
    def spatial_statistics(self) -> FeatureStatistics | None:
        """Mean and covariance of the spatial features, in float64, if there are any."""
        return self.known_spatial or (None if self.spatial is None else _statistics_of(self.spatial))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The per-image tensors that exist, by name."""
        found = {name: getattr(self, name) for name in ("features", "logits", "spatial")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def on_cpu(self) -> "FeatureSet":
        """A copy in fp32 on the CPU."""
        return FeatureSet(**{name: tensor.float().cpu() for name, tensor in self.tensors().items()})

    @classmethod
    def joined(cls, parts: Sequence["FeatureSet"]) -> "FeatureSet":
        """One set with the images of all ``parts`` (at least one) in order."""
        names = parts[0].tensors()
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    @classmethod
    def interleaved(cls, parts: Sequence["FeatureSet"]) -> "FeatureSet":
        """One set in the images' order, if part ``r`` of ``n`` holds the images r, r + n, r + 2n, …"""
        total, found = sum(len(part) for part in parts), {}
        for name, first in parts[0].tensors().items():
            found[name] = torch.empty(total, *first.shape[1:])
            for rank, part in enumerate(parts):
                if len(part):
                    found[name][rank :: len(parts)] = getattr(part, name)
        return cls(**found)


def _statistics_of(features: torch.Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics(features.shape[1])
    for part in features.split(1000):
        statistics.update(part)
    return statistics


def collect(features: Features, batches: Iterable[torch.Tensor]) -> FeatureSet:
    """The features of images in batches (n, 3, H, W) in [0, 1]; the images are not kept."""
    found = [features(images).on_cpu() for images in batches]
    return FeatureSet.joined(found) if found else FeatureSet(torch.empty(0, features.dim))


def measure(
    features: Features, images: torch.Tensor, batch_size: int = 250
) -> tuple[FeatureStatistics, torch.Tensor | None]:
    """Statistics of the features of images (N, 3, H, W) in [0, 1], and their logits (N, classes) or None."""
    found = collect(features, images.split(batch_size))
    return found.statistics, found.logits


def compare(generated: FeatureSet, reference: FeatureSet, name: str) -> dict[str, float]:
    """All metrics of generated images against real ones, in the features called ``name``.

    These are ``fd_<name>``; ``kid_<name>`` and its deviation over subsets ``kid_<name>_std``; and by nearest neighbours
    ``precision_``, ``recall_``, ``density_`` and ``coverage_<name>``, which are omitted for six images or fewer. If the
    model has spatial features, also ``sfid`` (Nash et al. 2021, arXiv 2103.03841). For a reference with only published
    statistics, there are only the distances.
    """
    figures = {f"fd_{name}": frechet_distance(generated.statistics, reference.statistics)}
    if generated.spatial_statistics and reference.spatial_statistics:
        figures["sfid"] = frechet_distance(generated.spatial_statistics, reference.spatial_statistics)
    if len(reference) == 0:
        return figures
    figures[f"kid_{name}"], figures[f"kid_{name}_std"] = kernel_distance(generated.features, reference.features)
    if min(len(generated), len(reference)) > MIN_NEIGHBOURS:
        pairs = precision_recall, density_coverage
        values = [value for pair in pairs for value in pair(generated.features, reference.features)]
        figures |= {f"{kind}_{name}": v for kind, v in zip(("precision", "recall", "density", "coverage"), values)}
    return figures


def figures_alone(generated: FeatureSet, features: Features) -> dict[str, float]:
    """Metrics that need no real images: ``inception_score``, if the logits are those of a general classifier.

    A classifier of the requested classes gives `class_accuracy` instead.
    """
    is_general = generated.logits is not None and not features.class_names
    return {"inception_score": inception_score(generated.logits)} if is_general else {}


def inception_score(logits: torch.Tensor, part: int = 5000) -> float:
    """``exp E KL(p(y|x) | p(y))`` of logits (N, classes), averaged over parts of the images.

    Salimans et al. 2016, arXiv 1606.03498. Higher is better, but a model that repeats one good image per class also
    scores high.
    """
    scores = []
    for block in logits.double().log_softmax(-1).split(part):
        marginal = block.exp().mean(0).log()
        scores.append((block.exp() * (block - marginal)).sum(-1).mean().exp())
    return torch.stack(scores).mean().item()


def require_known(class_names: Sequence[str], known_names: Sequence[str]) -> None:
    """Check that a classifier of samples knows all classes.

    Raises:
        InputError: it does not know some of them.
    """
    if unknown := [name for name in class_names if name not in known_names]:
        raise InputError(
            f"the classifier of the samples does not know the classes {listed(unknown)}: it knows {listed(known_names, 8)}"
        )


def class_accuracy(
    logits: torch.Tensor, labels: Sequence[int], class_names: Sequence[str], known_names: Sequence[str]
) -> float:
    """Fraction of images whose highest logit, among ``class_names`` only, is the requested class.

    Only classes that could have been requested compete: a 0 is not wrong because it looks like an O.

    Raises:
        InputError: the classifier does not know a class.
    """
    require_known(class_names, known_names)
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
) -> float:
    """Fréchet distance between the reference images and their autoencoder reconstructions.

    No sampler can be expected to get below it.
    """
    parameter = next(vae.parameters())
    statistics = FeatureStatistics(features.dim)
    for part in images.split(batch_size):
        pixels = (part * 2 - 1).to(parameter.device, parameter.dtype)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        statistics.update(features((decoded.float() / 2 + 0.5).clamp(0, 1).cpu()).features)
    return frechet_distance(statistics, reference)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Everything that a Fréchet distance depends on besides the model; printed and saved with every metric.

    Attributes:
        generated, reference: numbers of images. split: of the reference.
        crop, resize: how reference images were cropped and resized.
        sampler, steps, guidance, guidance_channels, guidance_interval: how the images were made.
        precision: of the network during sampling. vae: hash of the autoencoder's weights.
        seed: of the samples. ema: whether averaged weights were sampled.
        features, weights_hash: the model that computed the features.
        guidance_base: whether the base guided. guidance_distillation: the guidance that the model was trained towards;
            1: none. stock_numerics: whether the network computed exactly as in diffusers (``--stock_numerics``). The
            line only contains these three if they are not the default, so lines written before they existed remain
            valid.
    """

    generated: int
    reference: int
    split: str
    crop: str
    resize: str
    sampler: str
    steps: int
    guidance: float
    guidance_channels: str
    guidance_interval: str
    precision: str
    vae: str
    seed: int
    ema: bool
    features: str
    weights_hash: str
    guidance_base: bool = False
    guidance_distillation: float = 1.0
    stock_numerics: bool = False

    def line(self) -> str:
        """The fields in one line, ``name=value``; fields at their default are omitted."""
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        values = dataclasses.asdict(self)
        return " ".join(f"{name}={values[name]}" for name, default in fields.items() if values[name] != default)

    @classmethod
    def parse(cls, line: str) -> "Protocol":
        """Parse the output of `line`.

        Raises:
            InputError: the line is not a protocol.
        """
        fields = dataclasses.fields(cls)
        always = [field.name for field in fields if field.default is dataclasses.MISSING]
        optional = "".join(rf"(?: {field.name}=(\S+))?" for field in fields[len(always) :])
        found = re.fullmatch(
            " ".join(f"{name}=(.*)" for name in always[:-1]) + rf" {always[-1]}=(\S*){optional}", line
        )
        if not found:
            raise InputError(f"not a protocol of a Fréchet distance: {line[:120]!r}")
        kinds = {bool: lambda text: text == "True", int: int, float: float, str: str}
        given = [(field, text) for field, text in zip(fields, found.groups()) if text is not None]
        try:
            return cls(**{field.name: kinds[field.type](text) for field, text in given})
        except ValueError as error:
            raise InputError(f"a damaged protocol ({error}): {line[:120]!r}") from None

    def require_comparable(self, other: "Protocol") -> None:
        """Refuse to compare metrics of different protocols; only the seed may differ.

        Raises:
            InputError: names the fields that differ.
        """
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        unlike = [f"{name} {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name]]
        unlike = [difference for difference in unlike if not difference.startswith("seed ")]
        if unlike:
            raise InputError(f"distances of different protocols cannot be compared: {'; '.join(unlike)}")
