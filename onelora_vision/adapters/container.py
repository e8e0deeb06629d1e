"""Reading adapter files that may be damaged or hostile, either completely or not at all, without executing anything.

A file's structure is checked before its values are read (`onelora_vision.storage.safetensors_file`). Pickles are not
read. Zip archives are read in memory: nothing is unpacked to disk, and each entry has a size limit.
"""

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

from onelora_vision.adapters.kinds import KINDS
from onelora_vision.errors import InputError, one_line
from onelora_vision.runtime.plugins import import_plugins
from onelora_vision.storage.safetensors_file import SafetensorsFile, parse_json

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "adapter_config.json", "adapter_model.safetensors", "README.md"
MAX_CONFIG = 1 << 20
MAX_ADAPTER = 2 << 30  # bytes, for an adapter that is unpacked or downloaded


class Contents(NamedTuple):
    """The contents of an adapter file.

    Attributes:
        weights: the safetensors file, including the strings in its header.
        config: the JSON text of the PEFT config next to it; empty if there is none.
    """

    weights: SafetensorsFile
    config: str


def read_contents(path: Path) -> Contents:
    """Read an adapter folder, a single ``.safetensors`` file, or a ``.zip`` of either.

    Raises:
        InputError: the file is missing, incomplete or malformed; one line names the cause.
    """
    try:
        if path.suffix.lower() == ".zip" and path.is_file():
            return _read_zip(path)
        weights = path / WEIGHTS_FILE if path.is_dir() else path
        if not weights.is_file():
            looked = f"no {WEIGHTS_FILE} in this folder" if path.is_dir() else "no such file or folder"
            raise InputError(f"{path}: {looked}; give an adapter folder or a .safetensors file")
        found = SafetensorsFile(str(weights))
        file = path / CONFIG_FILE
        text = _decode(_head(file, MAX_CONFIG, str(file)), str(file)) if path.is_dir() and file.is_file() else ""
        return Contents(found, text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error


def _read_zip(path: Path) -> Contents:
    try:
        with zipfile.ZipFile(path) as archive:
            files = _entries_of(archive, str(path))
            name = WEIGHTS_FILE if WEIGHTS_FILE in files else _only_weights(files, str(path))
            found = SafetensorsFile(f"{path}/{name}", _entry(archive, files[name], MAX_ADAPTER))
            config = _entry(archive, files[CONFIG_FILE], MAX_CONFIG) if CONFIG_FILE in files else b""
        return Contents(found, _decode(config, f"{path}/{CONFIG_FILE}"))
    except InputError:
        raise
    # On damaged archives, Python's zip reader raises errors of struct, zlib and lzma, and index errors.
    except Exception as error:
        raise InputError(f"{path}: not a whole zip archive ({one_line(error)})") from error


def _entries_of(archive: zipfile.ZipFile, where: str) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by name. All of them may be in one folder, which is left out of the names."""
    infos = [info for info in archive.infolist() if not info.is_dir()]
    found: dict[str, zipfile.ZipInfo] = {}
    folders = set()
    for info in infos:
        folder, _, name = info.filename.rpartition("/")
        is_plain = re.fullmatch(r"[\w\-. ]*", folder) and re.fullmatch(r"[\w\-. ()]+", name) and ".." not in folder
        is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
        if not is_plain or is_link:
            raise InputError(f"{where}: refused, its entry {info.filename[:80]!r} is not a plain file in one folder")
        if name in found:
            raise InputError(f"{where}: refused, {name!r} is in it twice")
        folders.add(folder)
        found[name] = info
    if len(folders) > 1:
        raise InputError(f"{where}: refused, its files are in {len(folders)} folders; zip one adapter folder")
    return found


def _only_weights(files: dict[str, zipfile.ZipInfo], where: str) -> str:
    names = [name for name in files if name.endswith(".safetensors")]
    if len(names) != 1:
        raise InputError(f"{where}: holds {len(names)} .safetensors files; zip one adapter folder or file")
    return names[0]


def _entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    if info.flag_bits & 1:
        raise InputError(f"{archive.filename}: {info.filename} is encrypted")
    with archive.open(info) as file:
        data = file.read(min(limit, info.file_size) + 1)
    if len(data) > min(limit, info.file_size):
        raise InputError(f"{archive.filename}: {info.filename} is larger than {limit:,} bytes or than declared")
    return data


def _head(file: Path, limit: int, where: str) -> bytes:
    with open(file, "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{where}: more than {limit:,} bytes, too long for an adapter's config")
    return data


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not text ({one_line(error)})") from error


def config_record(text: str, where: str) -> dict:
    """Parse the JSON text of a PEFT config into a dictionary with a supported ``peft_type``.

    Raises:
        InputError: the text is too long or not JSON, or the method is not supported.
    """
    if len(text) > MAX_CONFIG:
        raise InputError(f"{where}: its config has {len(text):,} characters, more than an adapter's can have")
    try:
        record = parse_json(text)
    except ValueError as error:
        raise InputError(f"{where}: its {CONFIG_FILE} is not JSON ({one_line(error)})") from error
    kind = record.get("peft_type") if isinstance(record, dict) else None
    if isinstance(kind, str) and kind not in KINDS:
        import_plugins()
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"{where}: unsupported peft_type {one_line(repr(kind), 60)} (supported: {', '.join(KINDS)})")
    return record
