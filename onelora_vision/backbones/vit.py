"""Image classifiers of timm and transformers: load one with its own preprocessing, give it a head, adapt it, ask it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from onelora_vision import embedded
from onelora_vision.backbones.base import Adaptation, Base, norms_with_parameters, save_transformers
from onelora_vision.backbones.class_names import match_classes
from onelora_vision.backbones.fuse import fuse_qkv as join_qkv
from onelora_vision.backbones.preprocessing import (
    ProcessorTransform,
    ReversedChannels,
    load_processor,
    measure,
    plain_config,
)
from onelora_vision.errors import InputError, nearest, one_line
from onelora_vision.runtime.hub import expect_hub
from onelora_vision.storage.weights import read_weights
from onelora_vision.tuners.hosts import adaptable_linears

#: Where timm keeps a state dict in a training checkpoint, in the order of timm's own choice.
_TIMM_STATES = ("state_dict_ema", "model_ema", "state_dict", "model")


@dataclass(kw_only=True)
class ViTBase(Base):
    """A classifier of timm or transformers, and how it wants its images.

    Attributes:
        model: images (B, 3, H, W), normalised -> logits (B, classes), or an output with ``.logits``.
        data_config: how the base wants its images, in timm's words: input_size (3, H, W), mean, std, interpolation,
            crop_pct, crop_mode.
        processor: the image processor of a transformers base, which then makes the pixels of inference.
        reverses_channels: whether the base takes BGR.
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
            drop_path: stochastic depth rate while training (timm).
            pretrained: False leaves the weights of a timm name random.

        Raises:
            InputError: unknown name, unreadable or unfitting file, no network for a name that must be fetched.
        """
        source = embedded.resolve(cls.task, source)
        options = {"drop_path_rate": drop_path} if drop_path else {}
        if resolution:
            options["img_size"] = resolution
        found = cls._load(source, architecture, options, pretrained)
        return replace(found, options={"architecture": architecture, "resolution": resolution})

    @classmethod
    def _load(cls, source: str, architecture: str | None, options: dict, pretrained: bool) -> Self:
        path = Path(source)
        if path.is_file():
            return _from_file(path, architecture, options)
        if path.is_dir() or source.count("/") == 1:
            config = _read_config(source)
            if "model_type" in config:
                return _from_transformers(source, options)
            name = f"{'local-dir' if path.is_dir() else 'hf-hub'}:{source}"
            return _from_timm(source, options, name=name, pretrained=pretrained)
        return _from_timm(source, options, name=source, pretrained=pretrained)

    @classmethod
    def from_config(cls, config: dict, num_classes: int | None = None, fuse_qkv: bool = False) -> Self:
        """The network of a timm or transformers config."""
        if "architecture" in config and "model_type" not in config:
            import timm

            classes = num_classes or config.get("num_classes")
            arguments = {**(config.get("model_args") or {}), **({"num_classes": classes} if classes else {})}
            model = timm.create_model(config["architecture"], pretrained=False, **arguments)
            return cls(model=model, data_config=_data_config(model))
        from transformers import AutoConfig, AutoModelForImageClassification

        known = leave_out_unused(AutoConfig.for_model(**config))
        if num_classes:
            known.num_labels = num_classes
        model = AutoModelForImageClassification.from_config(known)
        return cls(model=join_qkv(model) if fuse_qkv else model, data_config=plain_config(known))

    def _fit(self, class_names: list[str] | None, *, seed: int, fresh: bool = False, fuse_qkv: bool = False) -> None:
        """A head with one output per class name; a timm base without a head gets the one of its family.

        When the base's own head knows every class by name (`match_classes`), its rows are taken over, and the model
        classifies before any training ("zero-shot"). Else, or if ``fresh``, the weights are drawn by ``seed`` from a
        normal distribution of std 0.02 cut at two, and the biases are zero.
        """
        if class_names:
            _replace_head(self.model, list(class_names), self.class_names or [], seed, fresh)
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
        """The transform of inference: Pillow image -> (3, H, W), resized, cropped and normalised as the base wants."""
        from timm.data import create_transform

        if self.processor is not None:
            return ProcessorTransform(self.processor)
        return create_transform(**self.data_config, is_training=False)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The settings that `transform` follows, as JSON has them: those of the image processor, or timm's."""
        if self.processor is None:
            return json.loads(json.dumps(self.data_config))
        settings = json.loads(self.processor.to_json_string())
        settings.pop("image_processor_type", None)  # the class differs with the packages that are there
        given = {key: value for key, value in settings.items() if value is not None}
        return {"input_size": list(self.data_config["input_size"]), **given}

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std of the channels of images in [0, 1], in the order in which `training_transform` gives them."""
        order = -1 if self.reverses_channels else 1
        return tuple(self.data_config["mean"])[::order], tuple(self.data_config["std"])[::order]

    def training_transform(self, **augmentation):
        """timm's training transform with the base's size, mean and std; ``augmentation`` as `create_transform` has it."""
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


def classifier_names(model: nn.Module) -> list[str]:
    """Full names of the Linear layers that give the logits; none if the model has no head.

    timm records them. In transformers they are next to the base model, with one output per label.
    """
    if hasattr(model, "pretrained_cfg"):
        names = model.pretrained_cfg.get("classifier") or ()
        names, modules = [names] if isinstance(names, str) else list(names), dict(model.named_modules())
        return [name for name in names if isinstance(modules.get(name), nn.Linear)]
    return [
        f"{child}.{name}".rstrip(".")
        for child, part in model.named_children()
        if not isinstance(part, PreTrainedModel)
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == model.config.num_labels
    ]


def vit_adaptation(model: nn.Module) -> Adaptation:
    """Every Linear layer but the classifier is adapted, as far as the host calls it; the classifier is trained whole.

    timm keeps q, k and v in one layer (4 Linear layers per block), transformers apart (6).

    Raises:
        InputError: the model has no Linear classifier.
    """
    heads = _heads(model)
    linears = [name for name in adaptable_linears(model) if name not in heads]
    return Adaptation(linears, norms_with_parameters(model), heads)


def _heads(model: nn.Module) -> list[str]:
    if getattr(model, "num_classes", None) == 0:
        raise InputError(f"{type(model).__name__} has no classification head: give the number of classes to make one")
    heads = classifier_names(model)
    if not heads:
        raise InputError(f"{type(model).__name__} has no Linear classification layer, so it cannot be fine-tuned here")
    return heads


def _replace_head(
    model: nn.Module, names: list[str], known: Sequence[str], seed: int = 0, fresh: bool = False
) -> None:
    """See `ViTBase._fit`; ``known`` are the classes of the head that is there."""
    if getattr(model, "num_classes", None) == 0:
        model.reset_classifier(len(names))
    found = {} if fresh else match_classes(names, known).rows
    rows = [found[name] for name in names] if set(names) <= set(found) else None
    generator = torch.Generator().manual_seed(seed)
    for place in _heads(model):
        old = model.get_submodule(place)
        head = nn.Linear(old.in_features, len(names), bias=old.bias is not None)
        with torch.no_grad():
            nn.init.trunc_normal_(head.weight, std=0.02, a=-0.04, b=0.04, generator=generator)
            if rows is not None:
                head.weight.copy_(old.weight[rows])
            if old.bias is not None:
                head.bias.copy_(torch.zeros(len(names)) if rows is None else old.bias[rows])
        model.set_submodule(place, head.to(old.weight))
    _record_classes(model, names)


def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (B, classes) of normalised images (B, 3, H, W), for models of timm and of transformers."""
    output = model(images)
    return output if isinstance(output, torch.Tensor) else output.logits


@torch.no_grad()
def predict_classes(
    vit: ViTBase, pictures: Sequence[Image.Image], *, top: int = 5, batch_size: int = 32
) -> list[list[tuple[str, float]]]:
    """The ``top`` most probable classes of each picture as (name, probability), most probable first."""
    device = next(vit.model.parameters()).device
    vit.model.eval()
    transform, found = vit.transform, []
    for start in range(0, len(pictures), batch_size):
        images = torch.stack([transform(picture) for picture in pictures[start : start + batch_size]])
        probabilities = logits_of(vit.model, images.to(device)).float().softmax(1).cpu()
        values, classes = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        names = vit.class_names or [f"class {number}" for number in range(probabilities.shape[1])]
        found += [[(names[k], v) for k, v in zip(*row)] for row in zip(classes.tolist(), values.tolist())]
    return found


def _from_timm(base: str, options: dict, *, name: str, pretrained: bool, data: dict | None = None, **extra) -> ViTBase:
    import timm
    from timm.data import resolve_model_data_config

    if ":" not in name and not timm.is_model(name.split(".")[0]):
        tail = nearest(name, timm.list_models("*vit*"), "ViT")
        raise InputError(f"no model {name!r}: no timm name, file, folder or hub id{tail if 'did you' in tail else ''}")
    if pretrained:
        expect_hub(base)
    try:
        model = timm.create_model(name, pretrained=pretrained, **options, **extra)
    # timm raises bare RuntimeErrors, and the errors of safetensors, of the hub client and of the network.
    except Exception as error:
        raise InputError(f"{base}: cannot be loaded ({one_line(error, 300)})") from error
    labels = model.pretrained_cfg.get("label_names")
    names = list(labels) if labels and len(labels) == model.num_classes else None
    config = resolve_model_data_config(model)
    if "img_size" in options:
        config["input_size"] = (3, options["img_size"], options["img_size"])
    return ViTBase(model=model, source=base, class_names=names, data_config=config)


def _data_config(model: nn.Module) -> dict[str, Any]:
    """timm's data config, with the size that the model was built for."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    sizes = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return {**config, "input_size": (3, *sizes)} if sizes else config


def _from_file(path: Path, architecture: str | None, options: dict) -> ViTBase:
    """A timm checkpoint file (safetensors, or a pickle of tensors alone), with as many classes as it has."""
    import timm

    if architecture is None:
        raise InputError(f"{path}: a checkpoint file does not say what it is of: give --architecture, a timm name")
    vit = _from_timm(str(path), {}, name=architecture, pretrained=False)
    weights = timm.models.clean_state_dict(read_weights(path, inside=_TIMM_STATES))
    try:
        heads = classifier_names(vit.model)
        classes = [weights[f"{name}.weight"].shape[0] for name in heads if f"{name}.weight" in weights]
        size = {"num_classes": classes[0]} if classes else {}
        vit = _from_timm(str(path), options, name=architecture, pretrained=False, **size)
        result = vit.model.load_state_dict(weights, strict=False)
    except (RuntimeError, IndexError) as error:
        raise InputError(f"{path}: no checkpoint of {architecture} ({one_line(error, 300)})") from error
    missing = [key for key in result.missing_keys if key.rsplit(".", 1)[0] not in heads]
    if missing:
        raise InputError(f"{path}: no checkpoint of {architecture}: it lacks {', '.join(missing[:3])}, …")
    return vit


def _from_transformers(base: str, options: dict) -> ViTBase:
    from transformers import AutoConfig, AutoModelForImageClassification

    if options:
        raise InputError(f"{base}: --resolution and --drop_path are for timm's models; this one is transformers'")
    expect_hub(base)
    try:
        config = leave_out_unused(AutoConfig.from_pretrained(base, trust_remote_code=False))
        model, report = AutoModelForImageClassification.from_pretrained(
            base, config=config, output_loading_info=True, dtype=torch.float32, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"{base}: cannot be loaded ({one_line(error, 300)})") from error
    missing, heads = sorted(report["missing_keys"]), {name.split(".")[0] for name in classifier_names(model)}
    if foreign := [key for key in missing if key.split(".")[0] not in heads]:
        raise InputError(f"{base}: its weights lack {', '.join(foreign[:3])}: they are not of this model")
    labels, classes = model.config.id2label or {}, range(model.config.num_labels)
    names = None if missing or not labels else [labels[k] for k in classes]
    processor, is_reversed = load_processor(base), False
    if processor is None:
        data_config = plain_config(model.config)
    else:
        data_config, is_reversed = measure(base, processor)
    _try(base, model, data_config["input_size"])
    return ViTBase(
        model=model,
        source=base,
        class_names=names,
        data_config=data_config,
        processor=processor,
        reverses_channels=is_reversed,
    )


def leave_out_unused(config: Any) -> Any:
    """A transformers config without the parts that its classifier has but never calls: SigLIP's pooling head."""
    if config.model_type in ("siglip", "siglip2"):
        config.vision_config.vision_use_head = False
    return config


@torch.no_grad()
def _try(base: str, model: nn.Module, size: tuple[int, int, int]) -> None:
    """Refuse a transformers model that does not make logits of its own processor's images."""
    try:
        logits_of(model, torch.zeros(1, *size))
    except Exception as error:  # whatever a model raises that wants something else
        (_, height, width), reason = size, one_line(error, 300)
        raise InputError(
            f"{base}: this model does not classify images of {height} x {width} pixels ({reason})"
        ) from error


def _record_classes(model: nn.Module, names: list[str]) -> None:
    """Tell the host how many classes there are, where its own code asks."""
    if hasattr(model, "pretrained_cfg"):
        model.num_classes = len(names)
    else:
        model.num_labels = model.config.num_labels = len(names)
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: k for k, name in enumerate(names)}


def _read_config(name_or_path: str) -> dict:
    from huggingface_hub import hf_hub_download

    file = Path(name_or_path) / "config.json"
    if Path(name_or_path).is_dir() and not file.is_file():
        raise InputError(f"{name_or_path}: no config.json in this folder: it holds no model of timm or transformers")
    expect_hub(name_or_path)
    try:
        file = file if file.is_file() else hf_hub_download(name_or_path, "config.json")
        return json.loads(Path(file).read_text(encoding="utf-8"))
    # the hub client's errors come from requests, httpx and its own tree, depending on its version
    except Exception as error:
        raise InputError(
            f"{name_or_path}: no such folder, and not from the hub either ({one_line(error, 300)})"
        ) from error
