"""Models for evaluating images, by name; and the features of a reference set, computed once."""

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from onelora_vision.errors import InputError, nearest
from onelora_vision.metrics.dinov2 import MODEL, DinoFeatures
from onelora_vision.metrics.generative import EmbeddedFeatures, Features, FeatureSet
from onelora_vision.metrics.inception import InceptionFeatures
from onelora_vision.metrics.statistics_file import read_statistics
from onelora_vision.storage.cache import combined_hash, default_cache, dispensable
from onelora_vision.storage.files import atomic_file

FEATURES = ("embedded", "inception", "dinov2")
_LAYOUT = "2"  # of the cached files: with logits and spatial features


def open_features(name: str, weights: str | Path | None = None, timm_model: str = MODEL) -> Features:
    """The model for ``--fid_features``.

    Args:
        weights: its file, for ``inception`` and ``dinov2``.
        timm_model: which of timm's transformers to use for ``dinov2``.

    Raises:
        InputError: there is no model of this name, or its weights were not found.
    """
    models: dict[str, Callable[[], Features]] = {
        "embedded": EmbeddedFeatures,
        "inception": functools.partial(InceptionFeatures, weights),
        "dinov2": functools.partial(DinoFeatures, weights, timm_model),
    }
    if name not in models:
        raise InputError(f"no features {name!r}{nearest(name, models, 'feature')}")
    return models[name]()


def cached_features(
    images: Iterable[str], features: Features, compute: Callable[[], FeatureSet], write: bool = True
) -> FeatureSet:
    """The features of ``images`` from the user's cache, or else the result of ``compute``, cached if ``write``.

    If the cache is damaged, or cannot be read or written, a warning is issued and the features are computed.

    Args:
        images: everything that determines the images: their hashes, and how they are read, cropped and resized.
        features: the model; its name and weights are part of the key.
    """
    name = combined_hash(itertools.chain(images, (features.name, features.weights_hash, _LAYOUT)))[:16]
    with dispensable():
        path = _cache_file(name)
        if path.exists():
            return _read(path)
    found = compute()
    if write:
        with dispensable(), atomic_file(_cache_file(name)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in found.tensors().items()}, temporary)
    return found


def published_features(path: str | Path, features: Features, images: FeatureSet | None = None) -> FeatureSet:
    """A reference with published statistics, and with the features of its ``images``, if any.

    Raises:
        InputError: the file contains no statistics, or those of other features.
    """
    known = read_statistics(path)
    if len(known["known"].mean) != features.dim:
        raise InputError(
            f"{path}: statistics of {len(known['known'].mean)} features, but {features.name} has {features.dim}"
        )
    return replace(images or FeatureSet(torch.empty(0, features.dim)), **known)


def _cache_file(name: str) -> Path:
    return default_cache() / "references" / f"{name}.safetensors"


def _read(path: Path) -> FeatureSet:
    try:
        return FeatureSet(**load_file(path))
    except (SafetensorError, TypeError) as error:
        raise OSError(f"{path} is damaged ({error})") from error
