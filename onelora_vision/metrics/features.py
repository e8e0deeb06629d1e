"""Models that images are measured with, by name; and the features of a reference set, computed once."""

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
_LAYOUT = "2"  # of the kept files: with logits and spatial features


def open_features(name: str, weights: str | Path | None = None, timm_model: str = MODEL) -> Features:
    """The model behind ``--fid_features``.

    Args:
        weights: its file, for ``inception`` and ``dinov2``.
        timm_model: which of timm's transformers ``dinov2`` is.

    Raises:
        InputError: there is no model of this name, or its weights are not there.
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
    """The features of ``images`` in the user's cache, or what ``compute`` returns, which is then kept if ``write``.

    A cache that cannot be read or written, or is damaged, is a warning; the features are computed.

    Args:
        images: what the images depend on: their hashes, and how they are read, cut and scaled.
        features: the model that measures; its name and weights belong to the key.
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
    """A reference of which statistics were published, with the features of its ``images`` where it has some.

    Raises:
        InputError: the file holds none, or those of other features.
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
