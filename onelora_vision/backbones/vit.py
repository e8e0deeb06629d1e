"""Image classifiers of timm and transformers: load one with its own preprocessing, give it a head, adapt it, ask it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from onelora_vision.backbones.base import Adaptation, norms_with_parameters
from onelora_vision.backbones.class_names import match_classes
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

#: Name of the small ViT that ships with the package (32 pixels, 36 printed characters).
EMBEDDED = "embedded"
#: Where timm keeps a state dict in a training checkpoint, in the order of timm's own choice.
_TIMM_STATES = ("state_dict_ema", "model_ema", "state_dict", "model")


@dataclass(frozen=True)
class ViT:
    """A classifier and what belongs to it.

    Attributes:
        model: images (B, 3, H, W), normalised -> logits (B, classes), or an output with ``.logits``.
        data_config: how the base wants its images, in timm's words: input_size (3, H, W), mean, std, interpolation,
            crop_pct, crop_mode.
        class_names: what the model's head tells apart, if the base says so.
        base: the name it was loaded by.
        processor: the image processor of a transformers base, which then makes the pixels of inference.
        reverses_channels: whether the base takes BGR.
    """

    model: nn.Module
    data_config: dict[str, Any]
    class_names: list[str] | None
    base: str
    processor: Any = None
    reverses_channels: bool = False

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


def load_vit(
    name_or_path: str = EMBEDDED,
    *,
    architecture: str | None = None,
    resolution: int | None = None,
    drop_path: float = 0.0,
    pretrained: bool = True,
) -> ViT:
    """Load a classifier of timm or transformers with its weights in fp32.

    Args:
        name_or_path: `EMBEDDED`; a timm name ("vit_base_patch16_224.augreg_in21k"); a folder or hub id with a
            config.json of timm or transformers; or a timm checkpoint file, which needs ``architecture``.
        architecture: the timm name of a checkpoint file's architecture.
        resolution: side of the images in pixels, if not the base's own; timm resamples the position embedding.
        drop_path: stochastic depth rate while training (timm).
        pretrained: False leaves the weights of a timm name random.

    Raises:
        InputError: unknown name, unreadable or unfitting file, no network for a name that must be fetched.
    """
    if name_or_path == EMBEDDED:
        from onelora_vision import embedded

        return replace(load_vit(str(embedded.VIT), resolution=resolution, drop_path=drop_path), base=EMBEDDED)
    options = {"drop_path_rate": drop_path} if drop_path else {}
    if resolution:
        options["img_size"] = resolution
    path = Path(name_or_path)
    if path.is_file():
        return _from_file(path, architecture, options)
    if path.is_dir() or name_or_path.count("/") == 1:
        config = _read_config(name_or_path)
        if "model_type" in config:
            return _from_transformers(name_or_path, options)
        source = "local-dir" if path.is_dir() else "hf-hub"
        return _from_timm(name_or_path, options, name=f"{source}:{name_or_path}", pretrained=pretrained)
    return _from_timm(name_or_path, options, name=name_or_path, pretrained=pretrained)


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


def replace_head(vit: ViT, class_names: Sequence[str], *, seed: int = 0, fresh: bool = False) -> ViT:
    """Give the classifier one output per class name, in place; a timm base without a head gets the one of its family.

    When the base's own head knows every class by name (`match_classes`), its rows are taken over, and the model classifies before any
    training ("zero-shot"). Else, or if ``fresh``, the weights are drawn by ``seed`` from a normal distribution of
    std 0.02 cut at two, and the biases are zero.

    Raises:
        InputError: the model has no Linear classifier.
    """
    model, names = vit.model, list(class_names)
    if getattr(model, "num_classes", None) == 0:
        model.reset_classifier(len(names))
    found = {} if fresh else match_classes(names, vit.class_names or []).rows
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
    return replace(vit, class_names=names)


def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits (B, classes) of normalised images (B, 3, H, W), for models of timm and of transformers."""
    output = model(images)
    return output if isinstance(output, torch.Tensor) else output.logits


@torch.no_grad()
def predict_classes(
    vit: ViT, pictures: Sequence[Image.Image], *, top: int = 5, batch_size: int = 32
) -> list[list[tuple[str, float]]]:
    """The ``top`` most probable classes of each picture as (name, probability), most probable first."""
    device = next(vit.model.parameters()).device
    vit.model.eval()
    transform, found = vit.transform, []
    for start in range(0, len(pictures), batch_size):
        images = torch.stack([transform(picture) for picture in pictures[start : start + batch_size]])
        probabilities = logits_of(vit.model, images.to(device)).float().softmax(1).cpu()
        values, classes = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        found += [[(vit.class_names[k], v) for k, v in zip(*row)] for row in zip(classes.tolist(), values.tolist())]
    return found


def _from_timm(base: str, options: dict, *, name: str, pretrained: bool, data: dict | None = None, **extra) -> ViT:
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
    return ViT(model, config, names, base)


def _from_file(path: Path, architecture: str | None, options: dict) -> ViT:
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


def _from_transformers(base: str, options: dict) -> ViT:
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
    return ViT(model, data_config, names, base, processor, is_reversed)


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
