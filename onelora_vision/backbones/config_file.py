"""Reading the ``config.json`` with a network's architecture from a folder or a hub repository."""

import json
from pathlib import Path

from onelora_vision.errors import InputError, one_line
from onelora_vision.runtime.hub import expect_hub

_PLACES = ("transformer/config.json", "config.json")  # of a DiT pipeline; of a timm or transformers model


def config_of(source: str | Path) -> dict | None:
    """Read the config of a folder or hub id. Return None for anything else, such as a file or a timm name.

    Raises:
        InputError: the config is missing, or cannot be read or fetched.
    """
    folder = Path(source)
    if folder.is_dir():
        for candidate in (folder / place for place in _PLACES):
            if candidate.is_file():
                return _parsed(candidate, f"{source}: its {candidate.name} cannot be read")
        raise InputError(f"{source}: neither config.json nor transformer/config.json in this folder")
    if folder.exists() or str(source).count("/") != 1 or str(source).startswith("timm/"):
        return None
    return _from_hub(str(source))


def name_in(config: dict) -> str | None:
    """The name of the network in a config."""
    return config.get("_class_name") or config.get("model_type")


def _parsed(path: Path, message: str) -> dict:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{message} ({one_line(error)})") from error
    if not isinstance(config, dict):
        raise InputError(f"{message} (not a JSON object)")
    return config


def _from_hub(repository: str) -> dict:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    expect_hub(repository)
    for name in _PLACES:
        try:
            return _parsed(Path(hf_hub_download(repository, name)), f"{repository}: its config cannot be read")
        except LocalEntryNotFoundError as error:
            raise InputError(f"{repository}: no such folder, and the hub cannot be reached for its config") from error
        except EntryNotFoundError:
            continue
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise InputError(f"{repository}: its config cannot be fetched ({one_line(error)})") from error
    raise InputError(f"{repository}: the hub repository has no config.json")
