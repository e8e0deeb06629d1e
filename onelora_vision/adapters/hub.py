"""Adapters on the Hugging Face hub: download and upload."""

from collections.abc import Iterable
from pathlib import Path

from onelora_vision.adapters.container import CONFIG_FILE, MAX_ADAPTER, WEIGHTS_FILE
from onelora_vision.errors import InputError, one_line
from onelora_vision.runtime.hub import HUB_ID, fetch


def local_adapter(source: str | Path) -> Path:
    """Return the local path of an adapter. If no such path exists, a hub id ``owner/name`` is downloaded first.

    Raises:
        InputError: see `fetch_adapter`.
    """
    if Path(source).exists() or not HUB_ID.fullmatch(str(source)):
        return Path(source)
    try:
        return fetch_adapter(str(source))
    except InputError as error:
        raise InputError(f"{source}: no such file or folder here, and as a hub id: {error}") from error


def fetch_adapter(repo_id: str, limit: int = MAX_ADAPTER, how_to_allow: str = "") -> Path:
    """Download the config and the safetensors file of an adapter on the hub, and return their folder.

    Args:
        limit: maximum download size in bytes.
        how_to_allow: end of the message about an adapter that is larger.

    Raises:
        InputError: the repository does not exist, holds no adapter or is too large, or the hub cannot be reached.
    """
    if not HUB_ID.fullmatch(repo_id):
        raise InputError(f"{one_line(repo_id, 60)!r} is not a hub id (expected owner/name)")

    def wanted(names: Iterable[str]) -> list[str]:
        if WEIGHTS_FILE not in names:
            raise InputError(f"{repo_id}: holds no {WEIGHTS_FILE}, so it is not an adapter")
        return [name for name in (CONFIG_FILE, WEIGHTS_FILE) if name in names]

    return fetch(repo_id, wanted, limit, how_to_allow)


def check_repo_id(repo_id: str) -> None:
    """Raise an `InputError` unless ``repo_id`` is a valid repository name on the hub, such as ``user/name``."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"{one_line(repo_id)!r} cannot be a repository's name on the hub ({one_line(error)})"
        ) from error


def push_adapter(folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a whole adapter folder, including card and pictures, and return its URL.

    Args:
        repo_id: ``user/name``, or the name of one of your own repositories; created if it does not exist.
        token: token for the hub; by default, the one stored by ``hf auth login``.

    Raises:
        InputError: the folder does not hold a valid adapter, or the hub refused it or cannot be reached.
    """
    from huggingface_hub import HfApi

    from onelora_vision.adapters.file import read_adapter

    check_repo_id(repo_id)
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a hub repository holds an adapter folder with its card")
    read_adapter(folder)
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=["*.safetensors", "*.json", "*.md", "*.png"],
            commit_message="Upload adapter",
        )
    except Exception as error:  # from the hub's client, or from the HTTP library of its version
        raise InputError(f"{repo_id}: the hub did not take the adapter ({one_line(error)})") from error
    return f"{api.endpoint}/{repo_id}"
