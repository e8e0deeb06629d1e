"""Upload of an adapter folder to the Hugging Face hub."""

from pathlib import Path

from onelora_vision.adapters.files import read_adapter
from onelora_vision.errors import InputError, one_line


def push_adapter(folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a whole adapter folder (card and pictures included) and return its address.

    Args:
        repo_id: ``user/name``; made if it is not there.
        token: of the hub; by default the one that ``hf auth login`` stored.

    Raises:
        InputError: the folder holds no sound adapter, or the hub refused or was out of reach.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a hub repository holds an adapter folder with its card")
    read_adapter(folder)
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=["*.safetensors", "*.json", "*.md", "*.png"],
            commit_message="Upload adapter",
        )
    except (HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise InputError(f"{repo_id}: the hub did not take the adapter ({one_line(error)})") from error
    return f"{api.endpoint}/{repo_id}"
