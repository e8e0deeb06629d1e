"""How good generated images are: distances and class accuracy in the features of a named model.

They belong together: a distance falls when the style is right, whatever the pictures show; the class accuracy says
how often the picture shows what was asked for.
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
    """A frozen model that images are measured with.

    Attributes:
        name: goes into the metric's name: ``fd_<name>``. weights_hash: of the weights, for the protocol line.
        dim: number of features. class_names: of the logits, or empty where there are none. model: the network.
    """

    name: str
    model: nn.Module
    weights_hash: str
    dim: int
    class_names: Sequence[str] = ()

    @abstractmethod
    def __call__(self, images: torch.Tensor) -> "FeatureSet":
        """What the model says of images (N, 3, H, W) in [0, 1]."""

    def to(self, device: torch.device | str) -> "Features":
        """Move the network."""
        self.model.to(device)
        return self


class EmbeddedFeatures(Features):
    """The shipped classifier of 0-9 and A-Z, trained on printed glyphs and on the handwriting's training split."""

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
    """What a model says of a set of images.

    Attributes:
        features: (N, D), fp32 on CPU.
        logits: (N, classes), or None where the model does not classify.
        spatial: (N, S) features that keep their place in the image, or None where the model gives none.
        known, known_spatial: statistics of features and spatial features that were published; None: those of the images.
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
        """What there is of each image, by name."""
        found = {name: getattr(self, name) for name in ("features", "logits", "spatial")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def on_cpu(self) -> "FeatureSet":
        """The same in fp32 on the CPU."""
        return FeatureSet(**{name: tensor.float().cpu() for name, tensor in self.tensors().items()})

    @classmethod
    def joined(cls, parts: Sequence["FeatureSet"]) -> "FeatureSet":
        """One set of the images of all ``parts``, of which there is at least one, in their order."""
        names = parts[0].tensors()
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    @classmethod
    def interleaved(cls, parts: Sequence["FeatureSet"]) -> "FeatureSet":
        """One set in the images' order, of which part ``r`` of ``n`` holds the images r, r + n, r + 2n, …"""
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
    """The features of images that come in batches (n, 3, H, W) in [0, 1], none of which is kept."""
    found = [features(images).on_cpu() for images in batches]
    return FeatureSet.joined(found) if found else FeatureSet(torch.empty(0, features.dim))


def measure(
    features: Features, images: torch.Tensor, batch_size: int = 250
) -> tuple[FeatureStatistics, torch.Tensor | None]:
    """Statistics of the features of images (N, 3, H, W) in [0, 1], and their logits (N, classes) or None."""
    found = collect(features, images.split(batch_size))
    return found.statistics, found.logits


def compare(generated: FeatureSet, reference: FeatureSet, name: str) -> dict[str, float]:
    """All figures of generated images against real ones, by the features called ``name``, in one pass over them.

    ``fd_<name>``; ``kid_<name>`` and its deviation over subsets ``kid_<name>_std``; and by nearest neighbours
    ``precision_``, ``recall_``, ``density_`` and ``coverage_<name>``, which are left out for six images or fewer. Where
    the model gives spatial features, ``sfid`` (Nash et al. 2021, arXiv 2103.03841). Of a reference of which statistics
    alone are known there are the distances only.
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
    """Figures that need no real images: ``inception_score``, where the logits are a general classifier's. One of the
    asked-for classes themselves gives `class_accuracy` instead."""
    is_general = generated.logits is not None and not features.class_names
    return {"inception_score": inception_score(generated.logits)} if is_general else {}


def inception_score(logits: torch.Tensor, part: int = 5000) -> float:
    """``exp E KL(p(y|x) | p(y))`` of logits (N, classes), the mean over parts of images (Salimans et al. 2016,
    arXiv 1606.03498); higher is better, and a model that repeats one good picture of each class has a high one, too."""
    scores = []
    for block in logits.double().log_softmax(-1).split(part):
        marginal = block.exp().mean(0).log()
        scores.append((block.exp() * (block - marginal)).sum(-1).mean().exp())
    return torch.stack(scores).mean().item()


def require_known(class_names: Sequence[str], known_names: Sequence[str]) -> None:
    """Make sure that a classifier of samples knows all classes.

    Raises:
        InputError: it does not know some.
    """
    if unknown := [name for name in class_names if name not in known_names]:
        raise InputError(
            f"the classifier of the samples does not know the classes {listed(unknown)}: it knows {listed(known_names, 8)}"
        )


def class_accuracy(
    logits: torch.Tensor, labels: Sequence[int], class_names: Sequence[str], known_names: Sequence[str]
) -> float:
    """Share of images whose highest logit, among ``class_names`` alone, is the class asked for.

    Only the classes that could have been asked for compete: a 0 is not wrong for looking like an O.

    Raises:
        InputError: for a class that the classifier does not know.
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
    """Fréchet distance of the reference images, encoded and decoded, to themselves: no sampler can be expected to
    come below it."""
    parameter = next(vae.parameters())
    statistics = FeatureStatistics(features.dim)
    for part in images.split(batch_size):
        pixels = (part * 2 - 1).to(parameter.device, parameter.dtype)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
        statistics.update(features((decoded.float() / 2 + 0.5).clamp(0, 1).cpu()).features)
    return frechet_distance(statistics, reference)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Everything that a Fréchet distance depends on besides the model: it is printed and saved with every metric.

    Attributes:
        generated, reference: numbers of images. split: of the reference.
        crop, resize: how reference images were cut and scaled.
        sampler, steps, guidance, guidance_channels, guidance_interval: how the images were made.
        precision: of the network while they were made. vae: hash of the autoencoder's weights.
        seed: of the samples. ema: whether averaged weights were sampled.
        features, weights_hash: the model that measured.
        guidance_base: whether the base guided. guidance_distillation: the guidance that the model was trained towards;
            1: none. stock_numerics: whether the network computed as diffusers' does (``--stock_numerics``). The line names
            these three where they are not the default, so lines from before there were any hold.
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
        """The fields in one line, ``name=value``; those at their default are left out."""
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        values = dataclasses.asdict(self)
        return " ".join(f"{name}={values[name]}" for name, default in fields.items() if values[name] != default)

    @classmethod
    def parse(cls, line: str) -> "Protocol":
        """The protocol that `line` wrote.

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
        """Refuse to compare figures of unlike protocols; only the seed may differ.

        Raises:
            InputError: naming the fields that differ.
        """
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        unlike = [f"{name} {mine[name]} and {theirs[name]}" for name in mine if mine[name] != theirs[name]]
        unlike = [difference for difference in unlike if not difference.startswith("seed ")]
        if unlike:
            raise InputError(f"distances of different protocols cannot be compared: {'; '.join(unlike)}")
