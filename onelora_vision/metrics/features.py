"""Models that images are measured with, by name; and the features of a reference set, computed once."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from onelora_vision.errors import InputError, nearest
from onelora_vision.metrics.dinov2 import MODEL, DinoFeatures
from onelora_vision.metrics.generative import EmbeddedFeatures, Features, FeatureSet
from onelora_vision.metrics.inception import InceptionFeatures
from onelora_vision.storage.cache import combined_hash, default_cache, dispensable
from onelora_vision.storage.files import atomic_file

FEATURES = ("embedded", "inception", "dinov2")


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
    images: Sequence[str], features: Features, compute: Callable[[], FeatureSet], write: bool = True
) -> FeatureSet:
    """The features of ``images`` in the user's cache, or what ``compute`` returns, which is then kept if ``write``.

    A cache that cannot be read or written, or is damaged, is a warning; the features are computed.

    Args:
        images: what the images depend on: their hashes, and how they are read, cut and scaled.
        features: the model that measures; its name and weights belong to the key.
    """
    parts = [*images, features.name, features.weights_hash]
    with dispensable():
        path = _cache_file(parts)
        if path.exists():
            return _read(path)
    found = compute()
    if write:
        with dispensable(), atomic_file(_cache_file(parts)) as temporary:
            save_file({"features": found.features.contiguous()}, temporary)
    return found


def _cache_file(parts: Sequence[str]) -> Path:
    return default_cache() / "references" / f"{combined_hash(parts)[:16]}.safetensors"


def _read(path: Path) -> FeatureSet:
    try:
        return FeatureSet(load_file(path)["features"])
    except (SafetensorError, KeyError) as error:
        raise OSError(f"{path} is damaged ({error})") from error
