"""The structure of a safetensors file, checked before its values are read, and the values as NumPy arrays.

Nothing here needs torch, so a file can be inspected or refused quickly. Files may come from anyone: header length,
duplicate keys, names, sizes and nesting are checked, and nothing in a file is executed.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from onelora_vision.errors import InputError, one_line

if TYPE_CHECKING:
    import numpy as np

MAX_HEADER = 32 << 20
MAX_TENSORS = 100_000
_MAX_NAME = 512
_MAX_DEPTH = 64  # of JSON
_NAME = re.compile(r"[\w\-]+(?:\.[\w\-]+)*")
_KNOWN_START = {
    b"\x80": "a pickle (a PyTorch checkpoint?)",
    b"PK": "a zip archive (a PyTorch checkpoint?)",
    b"\x93NUMPY": "a numpy file",
    b"GGUF": "a GGUF file",
    b"<": "a web page (a failed download?)",
    b"version https://git-lfs": "a Git LFS pointer (the file itself was not downloaded)",
}
# The format's name of a dtype -> NumPy's for reading its bytes, and ours. NumPy has no bfloat16, whose 16 bits are the
# upper half of a float32's.
_TYPES = {
    "F64": ("<f8", "float64"), "F32": ("<f4", "float32"), "F16": ("<f2", "float16"), "BF16": ("<u2", "bfloat16"),
    "I64": ("<i8", "int64"), "I32": ("<i4", "int32"), "I16": ("<i2", "int16"), "I8": ("i1", "int8"),
    "U8": ("u1", "uint8"), "BOOL": ("?", "bool"),
}  # fmt: skip
# Values below 16 bits need a scale, which the file does not contain; complex values make no sense here.
_UNREADABLE = {
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "F4": "float4", "C64": "complex64",
}  # fmt: skip


class SafetensorsFile:
    """A safetensors file on disk or in memory, with checked structure.

    Args:
        where: its name, for messages.
        data: its bytes, if it is in memory; otherwise ``where`` is read.

    Attributes:
        strings: the header's ``__metadata__``.

    Raises:
        InputError: not a complete and well-formed safetensors file.
    """

    def __init__(self, where: str, data: bytes | None = None):
        self.where, self.data = where, data
        if data is None:
            with open(where, "rb") as file:
                size = Path(where).stat().st_size
                length = _header_length(file.read(8), size, where)
                text = file.read(length)
        else:
            size, length = len(data), _header_length(data[:8], len(data), where)
            text = data[8 : 8 + length]
        self.strings, self._fields = _parse_header(text, where)
        self._start, self._size = 8 + length, size - 8 - length

    def arrays(self) -> "dict[str, tuple[np.ndarray, str]]":
        """Each tensor's values, bfloat16 as float32, and its dtype's name in the file (``float32``, ``bfloat16``, …).

        Raises:
            InputError: an invalid dtype or position in the file.
        """
        import numpy as np

        data = self.data[self._start :] if self.data is not None else Path(self.where).read_bytes()[self._start :]
        found = {}
        for name, field in self._fields.items():
            kind, shape, begin, end = self._entry(name, field)
            stored, readable = _TYPES[kind]
            values = np.frombuffer(data[begin:end], stored)
            if kind == "BF16":
                values = (values.astype("<u4") << 16).view("<f4")
            found[name] = (values.reshape(shape), readable)
        return found

    def _entry(self, name: str, field: object) -> tuple[str, list[int], int, int]:
        """Dtype, shape and position of a tensor, checked to be consistent and within the file."""
        import numpy as np

        try:
            kind, shape, (begin, end) = field["dtype"], field["shape"], field["data_offsets"]
            if kind not in _TYPES:
                named, readable = _UNREADABLE.get(kind, kind), ", ".join(name for _, name in _TYPES.values())
                raise InputError(
                    f"{self.where}: {one_line(name, 80)} is {one_line(named, 20)}; readable are {readable}"
                )
            width = np.dtype(_TYPES[kind][0]).itemsize
            is_whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
            if is_whole and len(shape) <= 16 and math.prod(shape) * width == end - begin and end <= self._size:
                return kind, shape, begin, end
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
        raise InputError(
            f"{self.where}: not a whole safetensors file ({one_line(name, 80)} is not where its header says)"
        )


def _header_length(start: bytes, size: int, where: str) -> int:
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        kind = next((f": it is {kind}" for sign, kind in _KNOWN_START.items() if start.startswith(sign[:8])), "")
        raise InputError(f"{where}: not a whole safetensors file{kind or f' ({size} bytes, cut off or damaged)'}")
    if length > MAX_HEADER:
        raise InputError(f"{where}: its header has {length:,} bytes, more than a model's can have")
    return length


def _parse_header(text: bytes, where: str) -> tuple[dict[str, str], dict[str, object]]:
    """The header's strings, and its entries by tensor name. Unlike the library, refuses duplicates and odd names."""
    try:
        fields = parse_json(text.decode("utf-8"))
    except ValueError as error:
        raise InputError(f"{where}: not a whole safetensors file (its header: {one_line(error)})") from error
    if not isinstance(fields, dict):
        raise InputError(f"{where}: not a whole safetensors file (its header is not a JSON object)")
    strings = fields.pop("__metadata__", {})
    if not isinstance(strings, dict) or not all(isinstance(value, str) for value in strings.values()):
        raise InputError(f"{where}: the header's __metadata__ must hold strings only")
    if len(fields) > MAX_TENSORS:
        raise InputError(f"{where}: has {len(fields):,} tensors, more than {MAX_TENSORS:,}")
    odd = next((name for name in fields if len(name) > _MAX_NAME or not _NAME.fullmatch(name)), None)
    if odd is not None:
        raise InputError(f"{where}: {one_line(repr(odd), 80)} is not a valid tensor name")
    return strings, fields


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def parse_json(text: str, constant: Callable[[str], object] = _no_constant) -> object:
    """Parse JSON text from outside, more strictly than `json` does.

    Args:
        constant: converts ``NaN`` and ``Infinity``.

    Raises:
        ValueError: not JSON, duplicate keys, NaN, infinity, numbers with over 20 digits, or more than 64 levels of
            nesting.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_without_doubles, parse_constant=constant, parse_int=_int, parse_float=_float
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list)))
        level = [value for values in inner for value in values]
    return value


def _int(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"{one_line(text, 30)} is too large a number")
    return int(text)


def _float(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{one_line(text, 30)} is too large a number")
    return value


def _without_doubles(pairs: list[tuple[str, object]]) -> dict:
    fields: dict = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"key {one_line(repr(name), 80)} appears twice")
        fields[name] = value
    return fields
