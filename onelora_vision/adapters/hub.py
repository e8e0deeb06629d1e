"""Upload of an adapter folder to the Hugging Face hub."""

from pathlib import Path

from onelora_vision.adapters.file import read_adapter
from onelora_vision.errors import InputError, one_line


def check_repo_id(repo_id: str) -> None:
    """Raise an `InputError` unless ``repo_id`` can be the name of a repository on the hub, such as ``user/name``."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"{one_line(repo_id)!r} cannot be a repository's name on the hub ({one_line(error)})"
        ) from error


def push_adapter(folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a whole adapter folder (card and pictures included) and return its address.

    Args:
        repo_id: ``user/name``, or a name among one's own repositories; made if it is not there.
        token: of the hub; by default the one that ``hf auth login`` stored.

    Raises:
        InputError: the folder holds no sound adapter, or the hub refused or was out of reach.
    """
    from huggingface_hub import HfApi

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
    except Exception as error:  # of the hub's library, or of the HTTP library that it uses at the moment
        raise InputError(f"{repo_id}: the hub did not take the adapter ({one_line(error)})") from error
    return f"{api.endpoint}/{repo_id}"
