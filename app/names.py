"""Names of files and folders for messages to users, who must not see this server's paths."""

import re
from collections.abc import Mapping
from pathlib import Path

_FOLDERS = re.compile(
    r"""(?:file://|(?<![\w.~/]))/(?!/)(?:[^\s/'"()<>]+/)*(?=[^\s/])   # /srv/models/x, file:///srv/models/x
      | \b[A-Za-z]:[\\/](?:[^\s\\/'"()<>]+[\\/])*(?=[^\s\\/])          # C:\models\x""",
    re.VERBOSE,
)


def without_paths(value, known: Mapping[Path, str]):
    """A text, or the texts in lists and dicts, with each absolute path replaced by its last part.

    Args:
        known: folder -> the name that users know it by, which takes the folder's place in longer paths too. An empty
            name leaves the last part alone; list a folder that way if its path may contain spaces.
    """
    if isinstance(value, dict):
        return {key: without_paths(part, known) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(without_paths(part, known) for part in value)
    if not isinstance(value, str):
        return value
    for folder in sorted(known, key=lambda folder: len(str(folder)), reverse=True):
        value = re.sub(rf"{re.escape(str(folder))}(?![\w.-])", lambda _, name=known[folder]: name, value)
    return _FOLDERS.sub("", value)
