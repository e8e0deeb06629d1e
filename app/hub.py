"""The Hugging Face hub, for adapters and bases: only safetensors and JSON files are ever taken from it."""

import re
from pathlib import Path

from onelora_vision.adapters.container import CONFIG_FILE, WEIGHTS_FILE
from onelora_vision.errors import InputError, one_line

_BASE_FILES = ["*.safetensors", "*.json", "*.txt"]


def fetch_adapter(repo_id: str, limit: int) -> Path:
    """The folder of an adapter on the hub; at most ``limit`` bytes are downloaded.

    Raises:
        InputError: no such repository, no adapter in it, too large, or the hub is out of reach.
    """
    from huggingface_hub import HfApi, hf_hub_download

    if not re.fullmatch(r"[\w\-]+/[\w\-.]+", repo_id):
        raise InputError(f"{one_line(repo_id, 60)!r} is no hub id; it reads owner/name")
    try:
        info = HfApi().model_info(repo_id, files_metadata=True, timeout=10)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        if WEIGHTS_FILE not in sizes:
            raise InputError(f"{repo_id}: holds no {WEIGHTS_FILE}, so it is no adapter")
        wanted = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name in sizes]
        if sum(sizes[name] for name in wanted) > limit:
            raise InputError(f"{repo_id}: larger than this app takes ({limit / 1e6:.0f} MB)")
        return Path([hf_hub_download(repo_id, name, revision=info.sha) for name in wanted][-1]).parent
    except InputError:
        raise
    # the hub client's errors come from requests, httpx and its own tree, depending on its version
    except Exception as error:
        raise InputError(f"{repo_id}: could not be fetched from the hub ({one_line(error)})") from error


def fetch_base(repo_id: str) -> Path:
    """The folder of a model on the hub without its pickles.

    Raises:
        InputError: no such repository, no safetensors in it, or the hub is out of reach.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=_BASE_FILES, etag_timeout=10))
    except Exception as error:  # as above
        raise InputError(f"{repo_id}: could not be fetched from the hub ({one_line(error)})") from error
    if not any(folder.rglob("*.safetensors")):
        raise InputError(f"{repo_id}: has no safetensors files, and this app reads nothing else")
    return folder
