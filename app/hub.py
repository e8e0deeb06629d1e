"""Bases from the Hugging Face hub: which may be asked for, and only their safetensors and JSON files, up to a size."""

from collections.abc import Iterable
from pathlib import Path

from onelora_vision.errors import InputError, one_line
from onelora_vision.runtime.hub import fetch

_DEPTH = "depth-anything/Depth-Anything-V2-"
#: Bases that an adapter from anywhere may ask for: those that its authors or ours publish. ``--hub_bases`` adds more.
KNOWN_BASES = (
    "facebook/DiT-XL-2-256",
    "facebook/DiT-XL-2-512",
    *(f"{_DEPTH}{size}-hf" for size in ("Small", "Base", "Large")),
    *(f"{_DEPTH}Metric-{place}-{size}-hf" for place in ("Indoor", "Outdoor") for size in ("Small", "Base", "Large")),
    "google/vit-base-patch16-224",
    "google/vit-base-patch16-224-in21k",
    "google/vit-large-patch16-224",
    "vit_base_patch16_224",
    "vit_base_patch16_224.augreg_in21k",
    "vit_large_patch14_dinov2.lvd142m",
)


def fetch_base(name: str, limit: int) -> Path:
    """The folder of a model on the hub without its pickles; at most ``limit`` bytes are downloaded.

    Args:
        name: a hub id, or a timm name, whose repository is then taken.

    Raises:
        InputError: no such repository, no safetensors in it, too large, or the hub is out of reach.
    """

    def wanted(names: Iterable[str]) -> list[str]:
        if not any(file.endswith(".safetensors") for file in names):
            raise InputError(
                f"{name}: has no safetensors files, and this app reads no others; save the model with "
                "save_pretrained and start the app with --bases FOLDER"
            )
        return [file for file in names if file.endswith((".safetensors", ".json", ".txt"))]

    repository = name if "/" in name else _timm_repository(name)
    return fetch(repository, wanted, limit, "; the app's operator can set --max_base_mb")


def _timm_repository(name: str) -> str:
    import timm

    known = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name.split(".")[0]) else None
    if known is None or not known.hf_hub_id:
        raise InputError(f"{one_line(name, 60)}: timm has no weights of that name on the hub")
    return known.hf_hub_id + (f"{known.architecture}.{known.tag}" if known.hf_hub_id.endswith("/") else "")
