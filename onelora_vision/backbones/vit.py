"""Image classifiers of timm and transformers: loading with their own preprocessing, heads, adaptation, prediction."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import nn

from onelora_vision import embedded
from onelora_vision.backbones.base import Adaptation, Base, norms_with_parameters, save_transformers
from onelora_vision.backbones.fuse import fuse_qkv as join_qkv
from onelora_vision.backbones.preprocessing import (
    ProcessorTransform,
    ReversedChannels,
    plain_config,
)
from onelora_vision.backbones.vit_heads import classifier_names, logits_of, replace_head, require_heads
from onelora_vision.backbones.vit_loading import data_config_of, leave_out_unused, load_fields
from onelora_vision.tuners.hosts import adaptable_linears


@dataclass(kw_only=True)
class ViTBase(Base):
    """A classifier of timm or transformers with its preprocessing.

    Attributes:
        model: normalised images (B, 3, H, W) -> logits (B, classes), or an output with ``.logits``.
        data_config: preprocessing in timm's terms: input_size (3, H, W), mean, std, interpolation, crop_pct, crop_mode.
        processor: the image processor of a transformers base, used for inference.
        reverses_channels: whether the base expects BGR.
        options: the settings that it was loaded with.
    """

    data_config: dict[str, Any]
    processor: Any = None
    reverses_channels: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    task = "classification"
    load_settings = ("architecture", "resolution")

    @property
    def host(self) -> str:
        return "timm" if hasattr(self.model, "pretrained_cfg") else "transformers"

    @classmethod
    def load(
        cls,
        source: str | Path = "embedded",
        *,
        architecture: str | None = None,
        resolution: int | None = None,
        drop_path: float = 0.0,
        pretrained: bool = True,
    ) -> Self:
        """Load a classifier with its weights in fp32.

        Args:
            source: ``embedded``; a timm name ("vit_base_patch16_224.augreg_in21k"); a folder or hub id with a
                config.json of timm or transformers; or a timm checkpoint file, which needs ``architecture``.
            architecture: the timm name of a checkpoint file's architecture.
            resolution: side of the images in pixels, if not the base's own; timm resamples the position embedding.
            drop_path: stochastic depth rate in training (timm).
            pretrained: if False, a model given by its timm name keeps random weights.

        Raises:
            InputError: the name is unknown, the file is unreadable or does not fit, or a model to be fetched cannot be
                reached.
        """
        source = embedded.resolve(cls.task, source)
        options = {"drop_path_rate": drop_path} if drop_path else {}
        if resolution:
            options["img_size"] = resolution
        fields = load_fields(source, architecture, options, pretrained)
        return cls(**fields, options={"architecture": architecture, "resolution": resolution})

    @classmethod
    def from_config(cls, config: dict, num_classes: int | None = None, fuse_qkv: bool = False) -> Self:
        """Build the network of a timm or transformers config."""
        if "architecture" in config and "model_type" not in config:
            import timm

            classes = num_classes or config.get("num_classes")
            arguments = {**(config.get("model_args") or {}), **({"num_classes": classes} if classes else {})}
            model = timm.create_model(config["architecture"], pretrained=False, **arguments)
            return cls(model=model, data_config=data_config_of(model))
        from transformers import AutoConfig, AutoModelForImageClassification

        known = leave_out_unused(AutoConfig.for_model(**config))
        if num_classes:
            known.num_labels = num_classes
        model = AutoModelForImageClassification.from_config(known)
        return cls(model=join_qkv(model) if fuse_qkv else model, data_config=plain_config(known))

    def _fit(self, class_names: list[str] | None, *, seed: int, fresh: bool = False, fuse_qkv: bool = False) -> None:
        """Make a head with one output per class name. A timm base without a head gets the standard one of its family.

        If the base's own head knows every class by name (`match_classes`), its rows are kept, and the model classifies
        without any training ("zero-shot"). Otherwise, or if ``fresh``, the weights are drawn with ``seed`` from a
        normal distribution of std 0.02, truncated at two standard deviations, and the biases are zero.
        """
        if class_names:
            replace_head(self.model, list(class_names), self.class_names or [], seed, fresh)
            self.class_names = list(class_names)
        if fuse_qkv:
            join_qkv(self.model)

    def adaptation(self) -> Adaptation:
        return vit_adaptation(self.model)

    def replaced_modules(self) -> list[str]:
        return classifier_names(self.model)

    def example(self, batch: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
        images = torch.randn(batch, *self.data_config["input_size"], generator=torch.Generator().manual_seed(seed))
        return {"x" if self.host == "timm" else "pixel_values": images}

    @property
    def transform(self):
        """The inference transform: Pillow image -> (3, H, W), resized, cropped and normalised for the base."""
        from timm.data import create_transform

        if self.processor is not None:
            return ProcessorTransform(self.processor)
        return create_transform(**self.data_config, is_training=False)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The settings of `transform` as JSON: those of the image processor, or timm's."""
        if self.processor is None:
            return json.loads(json.dumps(self.data_config))
        settings = json.loads(self.processor.to_json_string())
        settings.pop("image_processor_type", None)  # the class depends on the installed packages
        given = {key: value for key, value in settings.items() if value is not None}
        return {"input_size": list(self.data_config["input_size"]), **given}

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of the channels for images in [0, 1], in the channel order of `training_transform`."""
        order = -1 if self.reverses_channels else 1
        return tuple(self.data_config["mean"])[::order], tuple(self.data_config["std"])[::order]

    def training_transform(self, **augmentation):
        """timm's training transform with the base's size, mean and std; ``augmentation`` as in `create_transform`."""
        from timm.data import create_transform

        transform = create_transform(**self.data_config, is_training=True, **augmentation)
        return ReversedChannels(transform) if self.reverses_channels else transform

    def save_merged(self, model: nn.Module, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
        if self.host == "transformers":
            save_transformers(model, folder, dtype, max_shard_size, self.source)
            return
        import timm

        labels = {"label_names": self.class_names} if self.class_names else {}
        timm.models.save_for_hf(model.to(dtype), folder, model_config=labels, safe_serialization=True)

    @property
    def host_class(self) -> str:
        return "" if self.host == "timm" else type(self.model).__name__

    def host_source(self) -> str:
        if self.host == "transformers":
            return self.source
        path = Path(self.source)
        if path.is_file():
            return self.options["architecture"]
        if path.is_dir():
            return f"local-dir:{path}"
        return f"hf-hub:{self.source}" if self.source.count("/") == 1 else self.source

    def host_options(self) -> dict[str, Any]:
        classes = len(self.class_names or []) or None
        if self.host == "transformers":
            return {"num_labels": classes, "ignore_mismatched_sizes": True} if classes else {}
        sizes = {"img_size": self.options.get("resolution"), "num_classes": classes}
        options = {key: value for key, value in sizes.items() if value is not None}
        if Path(self.source).is_file():
            options["pretrained_cfg_overlay"] = {"file": self.source}
        return options


def vit_adaptation(model: nn.Module) -> Adaptation:
    """Select every Linear layer that the host calls, except the classifier, which is trained whole.

    timm has one layer for q, k and v (4 Linear layers per block), transformers separate ones (6).

    Raises:
        InputError: the model has no Linear classifier.
    """
    heads = require_heads(model)
    linears = [name for name in adaptable_linears(model) if name not in heads]
    return Adaptation(linears, norms_with_parameters(model), heads)


@torch.no_grad()
def predict_classes(
    vit: ViTBase, pictures: Sequence[Image.Image], *, top: int = 5, batch_size: int = 32
) -> list[list[tuple[str, float]]]:
    """Return the ``top`` most probable classes of each picture as (name, probability), most probable first."""
    device = next(vit.model.parameters()).device
    if vit.model.training:
        vit.model.eval()
    transform, found = vit.transform, []
    for start in range(0, len(pictures), batch_size):
        images = torch.stack([transform(picture) for picture in pictures[start : start + batch_size]])
        probabilities = logits_of(vit.model, images.to(device)).float().softmax(1).cpu()
        values, classes = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        names = vit.class_names or [f"class {number}" for number in range(probabilities.shape[1])]
        found += [[(names[k], v) for k, v in zip(*row)] for row in zip(classes.tolist(), values.tolist())]
    return found
