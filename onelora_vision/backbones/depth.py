"""Common parts of the bases for monocular depth: metric and relative depth, input size and normalisation."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from onelora_vision import embedded
from onelora_vision.backbones.base import Adaptation, Base, norms_with_parameters, save_transformers
from onelora_vision.backbones.fuse import fuse_qkv as join_qkv
from onelora_vision.backbones.transformers_loading import LOADING_ERRORS, load_transformers, require_place
from onelora_vision.errors import InputError, one_line


@dataclass(kw_only=True)
class DepthBase(Base):
    """A depth model of transformers: images (B, 3, H, W) -> ``predicted_depth`` (B, H, W).

    A metric model predicts metres. A relative one predicts inverse depth up to scale and shift, which cannot be used
    with a loss in metres.

    Attributes:
        trains_head: whether methods train the head whole.
    """

    model: PreTrainedModel
    trains_head: bool = False

    task, host = "depth", "transformers"
    fit_settings = ("fuse_qkv", "max_depth")
    #: The transformers classes of the network and its config; the name of the family in messages.
    model_class: ClassVar[type[PreTrainedModel]]
    config_class: ClassVar[type[PretrainedConfig]]
    kind: ClassVar[str]
    #: Mean and standard deviation per channel for normalising its images.
    mean: ClassVar[tuple[float, float, float]]
    std: ClassVar[tuple[float, float, float]]
    #: Prefixes of the names of the encoder's linear layers and normalisation layers.
    encoder: ClassVar[str]
    norms: ClassVar[str]
    #: Weights that are never used, and that converted checkpoints leave out.
    unused_weights: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def load(
        cls,
        source: str | Path = "embedded/depth",
        *,
        revision: str | None = None,
        variant: str | None = None,
        cache_dir: str | None = None,
    ) -> Self:
        """Load a folder or hub id in fp32.

        Raises:
            InputError: the model does not exist or is not of this family, or its file lacks some of the weights.
        """
        source = embedded.resolve(cls.task, source)
        require_place(source, cls.kind)
        where = {"revision": revision, "cache_dir": cache_dir}
        model_type = cls.config_class.model_type
        try:
            config = cls.config_class.get_config_dict(source, **where)[0]
        except LOADING_ERRORS as error:
            reason = one_line(error, 300)
            raise InputError(f"{source}: cannot be loaded as {cls.kind} ({type(error).__name__}: {reason})") from error
        if config.get("model_type") != model_type:
            raise InputError(f"{source}: a {config.get('model_type')!r} model, not a {cls.kind} ({model_type})")
        options = {"unused": cls.unused_weights, "variant": variant, **where}
        return cls(model=load_transformers(cls.model_class, source, cls.kind, **options), source=source)

    @classmethod
    def from_config(cls, config: dict, num_classes: int | None = None, fuse_qkv: bool = False) -> Self:
        model = cls.model_class(cls.config_class.from_dict(config))
        return cls(model=join_qkv(model) if fuse_qkv else model)

    def _fit(
        self,
        class_names: list[str] | None,
        *,
        seed: int,
        fuse_qkv: bool = False,
        max_depth: int | None = None,
        train_head: bool = False,
    ) -> None:
        """Give the model a metric head up to ``max_depth`` metres; with ``train_head``, the head is trained whole."""
        if max_depth is not None and max_depth != self.max_depth:
            self.set_max_depth(max_depth)
            self.changed = ("head",)
        if fuse_qkv:
            join_qkv(self.model)
        self.trains_head = self.trains_head or train_head

    @property
    @abstractmethod
    def is_metric(self) -> bool:
        """Whether the model predicts metres."""

    @property
    @abstractmethod
    def max_depth(self) -> int | None:
        """The largest depth of a metric model in metres; None for relative depth."""

    @abstractmethod
    def set_max_depth(self, max_depth: int) -> None:
        """Give the model a metric head up to ``max_depth`` metres, in place.

        Raises:
            InputError: the model cannot have one, or ``max_depth`` is not a positive integer.
        """

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side in pixels of the square images that the network was designed for."""

    @property
    def patch_size(self) -> int:
        """Patch size in pixels; the sides of an image must be multiples of it."""
        return self.model.config.patch_size

    def resolution(self, given: int | str | None = None) -> int | str:
        """The size of the network's input in the syntax of `InputSize.parse`: ``given``, or the network's own size.

        Raises:
            InputError: the network does not accept images of this shape.
        """
        return given or self.image_size

    def adaptation(self) -> Adaptation:
        """The layers that the paper adapts: every linear of the encoder's blocks. Neck and head stay frozen."""
        return encoder_adaptation(self.model, self.encoder, self.norms, self.trains_head)

    def replaced_modules(self) -> list[str]:
        return ["head"]

    def example(self, batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
        shape = (batch, 3, self.image_size, self.image_size)
        return {"pixel_values": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}

    def depth(self, images: Tensor, model: nn.Module | None = None) -> Tensor:
        """Predict depth (B, H', W') for images (B, 3, H, W) in [0, 1], in metres if the model is metric.

        H and W must be multiples of the patch size. ``model`` replaces the base's own network: the same network with
        an adapter, or in a wrapper.
        """
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (model or self.model)(pixel_values=(images - mean) / std).predicted_depth

    def require_metric(self, source: str, loss: str) -> None:
        """Raise an `InputError` with advice if the model is relative, but ``loss`` is in metres."""
        if not self.is_metric:
            raise InputError(
                f"{source} is a relative checkpoint (inverse depth without scale), but the loss {loss!r} is in metres: "
                "give --max_depth (10 indoors, 80 outdoors) to turn its head into a metric one, start from a metric "
                "checkpoint, or train with --loss ssi"
            )

    def save_merged(self, model: nn.Module, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
        save_transformers(model, folder, dtype, max_shard_size, self.source)


def encoder_adaptation(model: nn.Module, encoder: str, norms: str, train_head: bool = False) -> Adaptation:
    """Select every linear layer below ``encoder`` and every norm below ``norms``, and the head if it is trained."""
    linears = [
        name for name, module in model.named_modules() if name.startswith(encoder) and isinstance(module, nn.Linear)
    ]
    return Adaptation(
        target_modules=linears,
        norm_modules=norms_with_parameters(model, prefix=norms),
        whole_modules=["head"] if train_head else [],
    )
