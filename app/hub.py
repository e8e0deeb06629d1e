"""The Hugging Face hub, for adapters and bases: only safetensors and JSON files, up to a size, are taken from it."""

import contextlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from onelora_vision.adapters.container import CONFIG_FILE, WEIGHTS_FILE
from onelora_vision.errors import InputError, one_line

HUB_ID = re.compile(r"[\w\-]+/[\w\-.]+")
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


def fetch_adapter(repo_id: str, limit: int) -> Path:
    """The folder of an adapter on the hub; at most ``limit`` bytes are downloaded.

    Raises:
        InputError: no such repository, no adapter in it, too large, or the hub is out of reach.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise InputError(f"{one_line(repo_id, 60)!r} is not a hub id; it reads owner/name")

    def wanted(names: Iterable[str]) -> list[str]:
        if WEIGHTS_FILE not in names:
            raise InputError(f"{repo_id}: holds no {WEIGHTS_FILE}, so it is not an adapter")
        return [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name in names]

    return _fetch(repo_id, wanted, limit, "--max_upload_mb")


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

    return _fetch(name if "/" in name else _timm_repository(name), wanted, limit, "--max_base_mb")


def _timm_repository(name: str) -> str:
    import timm

    known = timm.get_pretrained_cfg(name, allow_unregistered=False) if timm.is_model(name.split(".")[0]) else None
    if known is None or not known.hf_hub_id:
        raise InputError(f"{one_line(name, 60)}: timm has no weights of that name on the hub")
    return known.hf_hub_id + (f"{known.architecture}.{known.tag}" if known.hf_hub_id.endswith("/") else "")


def _fetch(repo_id: str, wanted: Callable[[Iterable[str]], list[str]], limit: int, flag: str) -> Path:
    """Download the ``wanted`` files of a repository in one revision, if the hub says that they fit."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(repo_id, files_metadata=True, timeout=10)
        sizes = {file.rfilename: file.size for file in info.siblings or []}
        names = wanted(sizes)
        if (unknown := [name for name in names if sizes[name] is None]) or sum(sizes[n] for n in names) > limit:
            size = "of unknown size" if unknown else f"{sum(sizes[n] for n in names) / 1e6:.0f} MB"
            raise InputError(
                f"{repo_id}: {size}, and this app takes {limit / 1e6:.0f} MB; its operator can set {flag}"
            )
        return Path(snapshot_download(repo_id, revision=info.sha, allow_patterns=names, etag_timeout=10))
    except InputError:
        raise
    # the hub client's errors come from requests, httpx and its own tree, depending on its version
    except Exception as error:
        with contextlib.suppress(Exception):  # out of reach, but it was downloaded before
            folder = Path(snapshot_download(repo_id, local_files_only=True))
            wanted([path.relative_to(folder).as_posix() for path in folder.rglob("*")])
            return folder
        raise InputError(f"{repo_id}: could not be fetched from the hub ({one_line(error)})") from error
