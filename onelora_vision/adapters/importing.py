"""Importing adapters of other tools as 1LoRA adapters, if they are of that form: rank 1, with a constant A."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from onelora_vision.adapters.bases import load_base, require_same_base
from onelora_vision.adapters.container import CONFIG_FILE, WEIGHTS_FILE
from onelora_vision.adapters.file import Adapter, read_adapter
from onelora_vision.adapters.formats import FORMATS, Format
from onelora_vision.adapters.formats.diffusers import MODULES_FILE
from onelora_vision.adapters.formats.reading import Source, Vectors, joined_qkv, own_whole
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.adapters.kinds import kind_of
from onelora_vision.adapters.layout import Layout
from onelora_vision.adapters.lowrank import as_vectors
from onelora_vision.backbones.base import Base
from onelora_vision.backbones.table import TASKS
from onelora_vision.errors import InputError, listed, nearest
from onelora_vision.storage.safetensors_file import SafetensorsFile
from onelora_vision.storage.weights import check_numbers, tensors_in
from onelora_vision.tuners import OneLoraConfig
from onelora_vision.tuners.matching import exact_pattern


def import_adapter(
    path: str | Path,
    *,
    base: str | Path | None = None,
    task: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Adapter:
    """Read a PEFT folder, or a file of diffusers or ComfyUI/kohya (or a folder with one), as a 1LoRA adapter.

    Args:
        base: the base model; files written by `export` name theirs.
        task: generation, classification or depth, if the file does not name it.
        class_names: the classes of the head or label table, if the file does not name them.

    Raises:
        InputError: the file is of another kind or not 1LoRA (a rank above 1, an A that is not constant); the message
            lists the layers.
    """
    path = Path(path)
    if task is not None and task not in TASKS:
        raise InputError(f"--task {task}: no such task{nearest(task, TASKS, 'task')}")
    format, source = _recognised(path)
    info, loaded = _base_of(source.info, path, base, task, class_names)
    if format.host not in ("", loaded.host):
        raise InputError(f"{source.path}: a single LoRA file can be imported for DiT only; give a PEFT folder")
    changes, whole = format.module.read(source, loaded)
    vectors = {module: as_vectors(change) for module, change in changes.items()}
    failed = [f"{module} ({reason})" for module, reason in vectors.items() if isinstance(reason, str)]
    if failed:
        raise InputError(f"{path}: not 1LoRA: {listed(failed)}")
    return _adapter(path, info, loaded, vectors, own_whole(whole, info, loaded, path))


def _recognised(path: Path) -> tuple[Format, Source]:
    """Detect the format of the adapter at ``path``, and read it."""
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        found = read_adapter(path)
        kind = kind_of(found.config)
        formats = {format.peft_type: format for format in FORMATS.values() if format.peft_type}
        if kind.name not in formats:
            raise InputError(f"{path}: is {kind.name}; can be imported: {', '.join(formats)}")
        return formats[kind.name], Source(path, found.tensors, found.info, found.config)
    file = _single_file(path)
    opened = SafetensorsFile(str(file))
    tensors, header = tensors_in(opened), opened.strings
    check_numbers(tensors, str(file))
    formats = [format for format in FORMATS.values() if format.key_prefix]
    format = next((f for f in formats if any(key.startswith(f.key_prefix) for key in tensors)), formats[0])
    return format, Source(file, tensors, AdapterInfo.from_header(header, str(file)))


def _single_file(path: Path) -> Path:
    if path.is_file():
        return path
    files = [file for file in sorted(path.glob("*.safetensors")) if file.name not in (MODULES_FILE, WEIGHTS_FILE)]
    if len(files) != 1:
        raise InputError(f"{path}: no {CONFIG_FILE} and {len(files)} LoRA files in it; give a PEFT folder or one file")
    return files[0]


def _base_of(
    info: AdapterInfo, path: Path, base: str | Path | None, task: str | None, class_names: Sequence[str] | None
) -> tuple[AdapterInfo, Base]:
    exported = info.extra.get("exported")
    exported = exported if isinstance(exported, dict) else {}
    extra = {key: value for key, value in info.extra.items() if key not in ("exported", "fuse_qkv")}
    extra["fuse_qkv"] = bool(exported.get("fuse_qkv", False))
    names = list(class_names) if class_names else info.class_names
    info = replace(
        info,
        task=task or info.task,
        method=str(exported.get("method", "onelora")),
        base=str(base or info.base),
        class_names=names,
        extra=extra,
        versions={},
    )
    loaded = load_base(info)
    require_same_base(info, path, loaded)
    extra = {**info.extra, "host": loaded.host_call(info.base)}
    return replace(info, base_fingerprint=loaded.fingerprint(), extra=extra), loaded


def _adapter(path: Path, info: AdapterInfo, base: Base, vectors: Vectors, whole: dict) -> Adapter:
    if base.host == "diffusers" and info.extra["fuse_qkv"]:
        vectors = joined_qkv(vectors)
    has_beta = any(beta is not None for _, beta in vectors.values())
    has_b = any(bool(b.any()) for b, _ in vectors.values()) or not has_beta
    layers = {}
    for module, (b, beta) in vectors.items():
        parts = {"onelora_b": b} if has_b else {}
        layers[module] = parts | ({"onelora_beta": torch.zeros_like(b) if beta is None else beta} if has_beta else {})
    config = OneLoraConfig(
        target_modules=exact_pattern(layers) if layers else None,
        modules_to_save=list(whole) or None,
        use_sum=has_b and bool(layers),
        use_bias=has_beta,
    )
    adapter = Adapter(config, Layout(layers, whole).to_tensors(), info, path)
    adapter.attach(base.model)  # checks that every tensor matches one in the base
    return adapter
