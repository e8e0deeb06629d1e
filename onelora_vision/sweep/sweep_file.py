"""A sweep's settings in a YAML file: flags of ``onelora sweep`` and of the script by name, and methods in sections."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from onelora_vision.errors import InputError, one_line
from onelora_vision.storage.textfiles import read_text


class SweepFile(NamedTuple):
    """The content of a sweep file.

    Attributes:
        own: flags of the command. flags: of the script, as on a command line.
        sections: names of methods by the title of their table; empty if the methods are one list.
    """

    own: dict[str, str]
    flags: list[str]
    sections: dict[str, list[str]]


def read_sweep_file(path: Path, own: Collection[str]) -> SweepFile:
    """Read ``path``, where the names ``own`` belong to the command and all others to the script.

    Raises:
        InputError: no such file, not YAML, or a value that no flag can have.
    """
    import yaml

    try:
        found = yaml.safe_load(read_text(path, "sweep file"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML ({one_line(error)})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected names of flags with their values, such as 'seeds: 0,1,2'")
    sections = found.get("methods")
    sections = sections if isinstance(sections, dict) else {}
    for title, names in sections.items():
        if not isinstance(names, list):
            raise InputError(f"{path}: methods: {title}: expected a list of methods, not {names!r}")
    if sections:
        found["methods"] = list(dict.fromkeys(name for names in sections.values() for name in names))
    texts = {str(name).replace("-", "_"): _text(path, name, value) for name, value in found.items()}
    return SweepFile(
        {name: text for name, text in texts.items() if name in own},
        [f"--{name}={text}" for name, text in texts.items() if name not in own],
        {str(title): list(map(str, names)) for title, names in sections.items()},
    )


def _text(path: Path, name: Any, value: Any) -> str:
    """A value as on a command line: lists with commas."""
    if isinstance(value, list):
        return ",".join(_text(path, name, part) for part in value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    raise InputError(f"{path}: {name}: expected text, a number or a list, not {value!r}")
