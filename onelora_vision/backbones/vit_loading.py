"""Loading image classifiers: timm by name, folder or checkpoint file, and transformers by folder or hub id."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from onelora_vision.backbones.base import quiet_transformers
from onelora_vision.backbones.preprocessing import load_processor, measure, plain_config
from onelora_vision.backbones.vit_heads import classifier_names, logits_of
from onelora_vision.errors import InputError, nearest, one_line
from onelora_vision.runtime.hub import expect_hub
from onelora_vision.storage.weights import read_weights

#: Keys of the state dict in timm's training checkpoints, in timm's own order of preference.
_TIMM_STATES = ("state_dict_ema", "model_ema", "state_dict", "model")


def load_fields(source: str, architecture: str | None, options: dict, pretrained: bool) -> dict[str, Any]:
    """Load a classifier as fields of `ViTBase`. Arguments are as in `ViTBase.load`; ``options`` are timm's."""
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


def _from_timm(base: str, options: dict, *, name: str, pretrained: bool, **extra) -> dict[str, Any]:
    import timm
    from timm.data import resolve_model_data_config

    if ":" not in name and not timm.is_model(name.split(".")[0]):
        tail = nearest(name, timm.list_models("*vit*"), "ViT")
        raise InputError(f"no model {name!r}: no timm name, file, folder or hub id{tail if 'did you' in tail else ''}")
    if pretrained:
        expect_hub(base)
    try:
        model = timm.create_model(name, pretrained=pretrained, **options, **extra)
    # timm raises bare RuntimeErrors, and errors of safetensors, the hub client and the network.
    except Exception as error:
        if isinstance(error, TypeError) and "img_size" in str(error):
            raise InputError(
                f"{base}: models of this family are not built for one size, so --resolution cannot change it; leave it out"
            ) from error
        raise InputError(f"{base}: cannot be loaded ({one_line(error, 300)})") from error
    labels = model.pretrained_cfg.get("label_names")
    names = list(labels) if labels and len(labels) == model.num_classes else None
    config = resolve_model_data_config(model)
    if "img_size" in options:
        config["input_size"] = (3, options["img_size"], options["img_size"])
    return {"model": model, "source": base, "class_names": names, "data_config": config}


def _from_file(path: Path, architecture: str | None, options: dict) -> dict[str, Any]:
    """Load a timm checkpoint file (safetensors, or a pickle of tensors only) with its own number of classes."""
    import timm

    if architecture is None:
        raise InputError(f"{path}: a checkpoint file does not name its architecture: give --architecture, a timm name")
    found = _from_timm(str(path), {}, name=architecture, pretrained=False)
    weights = timm.models.clean_state_dict(read_weights(path, inside=_TIMM_STATES))
    try:
        heads = classifier_names(found["model"])
        classes = [weights[f"{name}.weight"].shape[0] for name in heads if f"{name}.weight" in weights]
        size = {"num_classes": classes[0]} if classes else {}
        found = _from_timm(str(path), options, name=architecture, pretrained=False, **size)
        result = found["model"].load_state_dict(weights, strict=False)
    except (RuntimeError, IndexError) as error:
        raise InputError(f"{path}: not a checkpoint of {architecture} ({one_line(error, 300)})") from error
    missing = [key for key in result.missing_keys if key.rsplit(".", 1)[0] not in heads]
    if missing:
        raise InputError(f"{path}: not a checkpoint of {architecture}: it lacks {', '.join(missing[:3])}, …")
    return found


def _from_transformers(base: str, options: dict) -> dict[str, Any]:
    from transformers import AutoConfig, AutoModelForImageClassification

    if options:
        raise InputError(f"{base}: --resolution and --drop_path are for timm's models; this one is transformers'")
    expect_hub(base)
    try:
        config = leave_out_unused(AutoConfig.from_pretrained(base, trust_remote_code=False))
        with quiet_transformers():
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
    return {
        "model": model,
        "source": base,
        "class_names": names,
        "data_config": data_config,
        "processor": processor,
        "reverses_channels": is_reversed,
    }


def leave_out_unused(config: Any) -> Any:
    """Disable parts that the classifier of a transformers config has but never calls: SigLIP's pooling head."""
    if config.model_type in ("siglip", "siglip2"):
        config.vision_config.vision_use_head = False
    return config


@torch.no_grad()
def _try(base: str, model: nn.Module, size: tuple[int, int, int]) -> None:
    """Raise an `InputError` if a transformers model does not return logits for images of its own processor's size."""
    try:
        logits_of(model, torch.zeros(1, *size))
    except Exception as error:  # a model that needs other inputs may raise anything
        (_, height, width), reason = size, one_line(error, 300)
        raise InputError(
            f"{base}: this model does not classify images of {height} x {width} pixels ({reason})"
        ) from error


def _read_config(name_or_path: str) -> dict:
    from huggingface_hub import hf_hub_download

    file = Path(name_or_path) / "config.json"
    if Path(name_or_path).is_dir() and not file.is_file():
        raise InputError(f"{name_or_path}: no config.json in this folder: it holds no model of timm or transformers")
    expect_hub(name_or_path)
    try:
        file = file if file.is_file() else hf_hub_download(name_or_path, "config.json")
        return json.loads(Path(file).read_text(encoding="utf-8"))
    # depending on its version, the hub client raises errors of requests, httpx or its own
    except Exception as error:
        raise InputError(
            f"{name_or_path}: no such folder, and not available from the hub ({one_line(error, 300)})"
        ) from error


def data_config_of(model: nn.Module) -> dict[str, Any]:
    """timm's data config with the size that the model was built for."""
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config(model)
    sizes = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return {**config, "input_size": (3, *sizes)} if sizes else config
