"""Weight files of other programs, read as tensors only.

Such files may come from anyone. Nothing in them is executed, no tensor is larger than its data in the file (a view of a
few bytes could ask for hundreds of gigabytes), and the result is a state dict of dense tensors.
"""

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from onelora_vision.errors import InputError, one_line
from onelora_vision.storage.safetensors_file import SafetensorsFile

# Values below 16 bits need a scale, which a state dict does not contain.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
_SHARED = 4  # tied layers are stored once in a file but are several entries in a state dict


def read_weights(path: str | Path, inside: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """The state dict in a ``.safetensors`` file or in a PyTorch checkpoint of any age (``.pt``, ``.pth``, ``.bin``).

    Args:
        inside: keys under which a training checkpoint may store its state dict, in order of preference.

    Raises:
        InputError: the file cannot be read, contains anything but tensors by name, or values that are not plain
            numbers: NaN, infinite, complex, below 16 bits, or more than the file has room for.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        if path.suffix == ".safetensors":
            state: object = tensors_in(SafetensorsFile(str(path)))
        else:
            state = _unpickled(path, start)
    except InputError:
        raise
    # torch raises almost any kind of error for damaged or hostile checkpoints
    except Exception as error:
        is_code = isinstance(error, pickle.UnpicklingError) and "weights only" in str(error).lower()
        reason = "it holds more than tensors, which could run code" if is_code else one_line(error)
        raise InputError(f"{path}: cannot be read as a checkpoint ({reason})") from error
    if isinstance(state, Mapping):
        name = next((name for name in inside if name in state), None)
        state = state if name is None else state[name]
    _check_kinds(state, str(path))
    _check_room(state, str(path), path.stat().st_size)
    _check_finite(state, str(path))
    return {name: tensor.detach() for name, tensor in state.items()}


def _unpickled(path: Path, start: bytes) -> object:
    is_zip = start.startswith(b"PK")
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError(f"{path}: its entries are compressed, which PyTorch never does")
    # training scripts save their arguments in checkpoints; torch also warns about files that then fail anyway
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip or None)


def check_numbers(state: object, where: str, *, finite: bool = True) -> None:
    """Refuse a state dict with anything but dense tensors of plain numbers by name.

    Raises:
        InputError: the message names the tensor.
    """
    _check_kinds(state, where)
    if finite:
        _check_finite(state, where)


def _check_kinds(state: object, where: str) -> None:
    if not isinstance(state, Mapping) or not state:
        kind = "none at all" if isinstance(state, Mapping) else f"a {type(state).__name__} instead"
        raise InputError(f"{where}: holds no tensors by name ({kind})")
    for name, tensor in state.items():
        shown = one_line(repr(name), 80)
        if not isinstance(name, str):
            raise InputError(f"{where}: holds no tensors by name (a key is {shown})")
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{where}: {shown} is a {type(tensor).__name__}, not a tensor")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
            raise InputError(f"{where}: {shown} is not a dense tensor of numbers")
        if tensor.dtype not in _FLOATS + _WHOLE:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(
                f"{where}: {shown} is {kind}; readable are float16, bfloat16, float32, float64 and integers"
            )
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            shape = "x".join(map(str, tensor.shape[:8]))
            raise InputError(f"{where}: {shown} is larger ({shape}) than its data in the file")


def _check_finite(state: Mapping[str, torch.Tensor], where: str) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = f"{int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} values"
            raise InputError(f"{where}: {one_line(name, 80)} holds {bad} that are NaN or infinite")


def _check_room(state: Mapping[str, torch.Tensor], where: str, size: int) -> None:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in state.values()}
    asked, held = sum(tensor.nbytes for tensor in state.values()), sum(storages.values())
    if held > size or asked > _SHARED * size:
        raise InputError(f"{where}: its tensors ask for {max(asked, held):,} bytes, the file has {size:,}")


def tensors_in(file: SafetensorsFile) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file by name.

    Raises:
        InputError: they do not match the header.
    """
    try:
        if file.data is not None:
            return load(file.data)
        with safe_open(file.where, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
    # the library raises several kinds of errors for dtypes that torch lacks
    except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{file.where}: not a whole safetensors file ({one_line(error)})") from error
