"""LoRA files of other tools brought back as 1LoRA adapters, where they are such: rank 1, with a constant A."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from onelora_vision.adapters.bases import TASKS, Base, load_base, require_same_base
from onelora_vision.adapters.container import CONFIG_FILE, WEIGHTS_FILE
from onelora_vision.adapters.export import MODULES_FILE
from onelora_vision.adapters.file import Adapter, read_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.adapters.kinds import kind_of
from onelora_vision.adapters.layout import Layout, layout_of
from onelora_vision.adapters.lowrank import LowRank, low_rank, split_rows
from onelora_vision.backbones import dit_names
from onelora_vision.errors import InputError, listed, nearest
from onelora_vision.storage.safetensors_file import SafetensorsFile
from onelora_vision.storage.weights import check_numbers, read_weights, tensors_in
from onelora_vision.tuners import OneLoraConfig
from onelora_vision.tuners.matching import exact_pattern

_CONSTANT = 1e-6  # how far A's values may differ from their mean, relative to it
_COMFY = "lora_unet_"
_DIFFUSERS = "transformer."


def import_lora(
    path: str | Path,
    *,
    base: str | Path | None = None,
    task: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Adapter:
    """Read a LoRA of PEFT (folder), diffusers or ComfyUI/kohya (file, or folder with one) as a 1LoRA adapter.

    Args:
        base: the base model; files that `export` wrote know theirs.
        task: generation, classification or depth, for a file that does not say.
        class_names: of the head or label table in it, for a file that does not say.

    Raises:
        InputError: not such a file, or no 1LoRA: rank above 1, or an A that is not constant; the layers are listed.
    """
    path = Path(path)
    if task is not None and task not in TASKS:
        raise InputError(f"--task {task}: no such task{nearest(task, TASKS, 'task')}")
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        found = read_adapter(path)
        if kind_of(found.config).name != "LORA":
            raise InputError(f"{path}: is {kind_of(found.config).name}, not a LoRA")
        info, loaded = _base_of(found.info, path, base, task, class_names)
        layout = layout_of(found.config, found.tensors, str(path))
        changes, whole = _from_peft(found, layout, loaded)
    else:
        file = _lora_file(path)
        opened = SafetensorsFile(str(file))
        tensors, header = tensors_in(opened), opened.strings
        check_numbers(tensors, str(file))
        info, loaded = _base_of(AdapterInfo.from_header(header, str(file)), path, base, task, class_names)
        changes, whole = _from_file(tensors, file, loaded)
    vectors = {module: _vector(change, module) for module, change in changes.items()}
    failed = [f"{module} ({reason})" for module, reason in vectors.items() if isinstance(reason, str)]
    if failed:
        raise InputError(f"{path}: no 1LoRA: {listed(failed)}")
    return _adapter(path, info, loaded, vectors, _own_whole(whole, info, loaded, path))


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
    require_same_base(Adapter(OneLoraConfig(target_modules="x"), {}, info, path), loaded)
    return replace(info, base_fingerprint=loaded.fingerprint), loaded


def _lora_file(path: Path) -> Path:
    if path.is_file():
        return path
    files = [file for file in sorted(path.glob("*.safetensors")) if file.name not in (MODULES_FILE, WEIGHTS_FILE)]
    if len(files) != 1:
        raise InputError(f"{path}: no {CONFIG_FILE} and {len(files)} LoRA files in it; give a PEFT folder or one file")
    return files[0]


Found = tuple[dict[str, LowRank], dict[str, dict[str, Tensor]]]


def _from_peft(adapter: Adapter, layout: Layout, base: Base) -> Found:
    changes = low_rank(adapter, layout, base.model)
    return (_own_changes(changes) if base.host == "diffusers" else changes), layout.whole


def _from_file(tensors: dict[str, Tensor], file: Path, base: Base) -> Found:
    if base.host != "diffusers":
        raise InputError(f"{file}: a single LoRA file is read for DiT only; give a PEFT folder")
    if any(key.startswith(_COMFY) for key in tensors):
        return _from_comfy(tensors, file, base)
    return _from_diffusers(tensors, file)


def _from_diffusers(tensors: dict[str, Tensor], file: Path) -> Found:
    stock: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(r"transformer\.(.+)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias)", key)
        if match is None:
            raise InputError(f"{file}: key {key!r} is none of a diffusers LoRA of a transformer")
        stock.setdefault(match[1], {})[match[2]] = tensor
    changes = {
        module: _parts(parts, "lora_A.weight", "lora_B.weight", "lora_B.bias", module)
        for module, parts in stock.items()
    }
    whole: dict[str, dict[str, Tensor]] = {}
    beside = file.with_name(MODULES_FILE)
    if beside.is_file():
        for key, tensor in read_weights(beside).items():
            module, _, part = key.rpartition(".")
            whole.setdefault(module, {})[part] = tensor
    return _own_changes(changes), whole


def _from_comfy(tensors: dict[str, Tensor], file: Path, base: Base) -> Found:
    """The original's names with underscores; what is a difference there becomes a value again."""
    places = {}
    for module, _ in base.model.named_modules():
        try:
            own = module.replace(".to_q", ".to_qkv") if module.endswith(".to_q") else module
            places[_COMFY + dit_names.facebook_module(own).replace(".", "_")] = own
        except KeyError:
            continue
    stems: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        stem, _, part = key.partition(".")
        if stem not in places:
            raise InputError(f"{file}: key {key!r} is for no layer of this DiT")
        stems.setdefault(places[stem], {})[part] = tensor
    changes, whole = {}, {}
    for module, parts in stems.items():
        if "lora_up.weight" not in parts:
            whole[module] = _values(module, parts, base)
            continue
        change = _parts(parts, "lora_down.weight", "lora_up.weight", "diff_b", module)
        alpha = parts["alpha"].item() if "alpha" in parts else float(change.down.shape[0])
        change.up = change.up * (alpha / change.down.shape[0])
        names = [module.removesuffix("to_qkv") + part for part in dit_names.QKV]
        split = module.endswith(".to_qkv")
        changes |= dict(zip(names, split_rows(change, 3))) if split else {module: change}
    return changes, whole


def _values(module: str, differences: dict[str, Tensor], base: Base) -> dict[str, Tensor]:
    start = base.model.get_submodule(module).state_dict()
    if module == dit_names.LABEL_TABLE:
        start = {"weight": base.own_table}
    names = {"diff": "weight", "diff_b": "bias"}
    return {names[part]: start[names[part]] + tensor.float() for part, tensor in differences.items() if part in names}


def _parts(parts: dict[str, Tensor], down: str, up: str, shift: str, module: str) -> LowRank:
    missing = [name for name in (down, up) if name not in parts or parts[name].ndim != 2]
    if missing:
        raise InputError(f"{module} lacks {', '.join(missing)}, a matrix")
    return LowRank(parts[down].float(), parts[up].float(), parts[shift].float() if shift in parts else None)


def _own_changes(changes: dict[str, LowRank]) -> dict[str, LowRank]:
    return {dit_names.own_module(module): change for module, change in changes.items()}


def _vector(change: LowRank, module: str) -> tuple[Tensor, Tensor | None] | str:
    """b and beta of a change, or why it has none."""
    down = change.down.double()
    if down.shape[0] != 1 or change.up.shape[1] != 1:
        return f"rank {down.shape[0]}"
    mean = down.mean()
    spread = ((down - mean).abs().max() / mean.abs().clamp_min(1e-30)).item()
    if not spread <= _CONSTANT:
        return f"A varies by {spread:.2g} of its mean"
    return (change.up[:, 0].double() * mean).float(), None if change.shift is None else change.shift.float()


def _own_whole(whole: dict, info: AdapterInfo, base: Base, path: Path) -> dict[str, dict[str, Tensor]]:
    """Whole modules under our names; a padded label table is cut to the classes that there are."""
    own: dict[str, dict[str, Tensor]] = {}
    for module, parts in whole.items():
        name = dit_names.own_module(module) if base.host == "diffusers" else module
        if name in own and any(not torch.equal(own[name][key], parts[key]) for key in parts):
            raise InputError(f"{path}: the copies of {name} in the blocks differ, and a DiT has one")
        own[name] = dict(parts)
    table = own.get(dit_names.LABEL_TABLE)
    if table is not None and info.class_names and len(table["weight"]) > len(info.class_names) + 1:
        table["weight"] = dit_names.cut_table(table["weight"], len(info.class_names))
    return {name: parts for name, parts in own.items() if name not in base.changed}


def _adapter(path: Path, info: AdapterInfo, base: Base, vectors: dict, whole: dict) -> Adapter:
    if base.host == "diffusers" and info.extra["fuse_qkv"]:
        vectors = _joined_qkv(vectors)
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
    adapter.attach(base.model)  # every tensor must find its place
    return adapter


def _joined_qkv(vectors: dict) -> dict:
    result = {}
    for module, value in vectors.items():
        stem, _, part = module.rpartition(".")
        if part not in dit_names.QKV:
            result[module] = value
        elif part == "to_q":
            three = [vectors[f"{stem}.{name}"] for name in dit_names.QKV]
            betas = [beta for _, beta in three]
            beta = None if any(b is None for b in betas) else torch.cat(betas)
            result[f"{stem}.to_qkv"] = (torch.cat([b for b, _ in three]), beta)
    return result
