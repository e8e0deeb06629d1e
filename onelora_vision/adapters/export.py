"""Adapters for tools that do not know this package, each proven by loading it in a process without this package.

``peft-lora``: a rank-1 LoRA folder of PEFT; beta is its LoRA bias, modules saved whole are its ``modules_to_save``.
``diffusers``: ``pytorch_lora_weights.safetensors``, with ``modules.safetensors`` beside it for modules saved whole.
``comfy``: one file in ComfyUI's and kohya's keys under the original DiT's names, everything in it as differences.
``merged``: the whole model as its own library saves it.

A label table is exported in the size of the base's own (see `dit_names.pad_table`), so that the base loads unchanged.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from onelora_vision.adapters.bases import load_base, require_same_base
from onelora_vision.adapters.file import Adapter, read_adapter, serialize, write_adapter
from onelora_vision.adapters.layout import Layout, layout_of
from onelora_vision.adapters.lowrank import LowRank, join_rows, low_rank, split_rows
from onelora_vision.adapters.targets import check_target
from onelora_vision.backbones import dit_names
from onelora_vision.backbones.base import Base, output_of
from onelora_vision.errors import InputError
from onelora_vision.storage.outputs import check_folder, folder_output
from onelora_vision.tuners import hosts
from onelora_vision.tuners.matching import exact_pattern

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
_RELOAD = Path(__file__).with_name("reload.py")
LORA_FILE, MODULES_FILE = "pytorch_lora_weights.safetensors", "modules.safetensors"


@dataclass
class Job:
    """One export: the adapter and its parts, the base (with stock numerics), and what was asked for."""

    adapter: Adapter
    layout: Layout
    base: Base
    dtype: str
    max_shard_size: str


def export(
    path: str | Path,
    to: str,
    output: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str = "fp32",
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> dict:
    """Write an adapter for other tools into the folder ``output``, load it there without this package, and compare.

    Args:
        to: one of `targets.TARGETS`. dtype: of what is written. max_shard_size: of a merged model's files.
        overwrite: replace an earlier export to the same format (see `outputs`).

    Returns a dictionary with ``file`` (what to load), ``carried`` (what is there besides low-rank changes), ``error``
        (greatest difference of the reloaded outputs) and ``effect`` (what the adapter itself changes), both relative
        to the largest output.

    Raises:
        InputError: the format cannot hold the adapter (with the list of what it cannot hold), or the reloaded export
            does not give the adapter's outputs, or the place is taken; nothing is left behind.
    """
    check_target(to, dtype)
    kind = f"{to} export"
    check_folder(output, kind, overwrite=overwrite, inputs=[path, *([base] if base else [])])
    adapter = read_adapter(path)
    loaded = load_base(adapter.info, base)
    require_same_base(adapter.info, adapter.path, loaded)
    loaded.compute_like_host(with_config=to == "merged")
    if loaded.host != "diffusers" and to in ("diffusers", "comfy"):
        raise InputError(f"--to {to} is for DiT; this is a {adapter.info.task} adapter: use peft-lora or merged")
    job = Job(adapter, layout_of(adapter.config, adapter.tensors, str(path)), loaded, dtype, max_shard_size)
    with folder_output(output, kind, overwrite=overwrite) as folder:
        result, expected, plain = _WRITERS[to](job, folder)
        error = _reloaded(job, to, folder / result["file"], expected)
        effect = _relative(plain, expected)
        if not error <= _TOLERANCE[dtype]:
            raise InputError(
                f"{path}: exported to {to}, but reloaded without onelora_vision its outputs differ by {error:.2g} of "
                f"the largest (allowed {_TOLERANCE[dtype]:g}); nothing was written"
            )
    return {"output": str(output), "to": to, "dtype": dtype, **result, "error": error, "effect": effect}


def _relative(output: Tensor, expected: Tensor) -> float:
    return ((output - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


@torch.no_grad()
def _outputs(job: Job) -> tuple[Tensor, Tensor]:
    """What the adapted base gives for its example, and what it gives without the adapter."""
    model, inputs = job.adapter.attach(job.base.model).eval(), job.base.example()
    expected = output_of(model, inputs)
    with model.disable_adapter():
        plain = output_of(model, inputs)
    model.unload()
    return expected, plain


def _changes(job: Job) -> dict[str, LowRank]:
    dtype = _DTYPES[job.dtype]
    found = low_rank(job.adapter, job.layout, job.base.model)
    return {
        module: LowRank(c.down.to(dtype), c.up.to(dtype), None if c.shift is None else c.shift.to(dtype))
        for module, c in found.items()
    }


def _whole(job: Job) -> dict[str, dict[str, Tensor]]:
    """Modules saved whole, with those that were changed to fit the adapter, the label table in the base's size."""
    whole = {module: dict(parts) for module, parts in job.layout.whole.items()}
    for module in job.base.changed:
        whole.setdefault(module, dict(job.base.model.get_submodule(module).state_dict()))
    table = whole.get(dit_names.LABEL_TABLE)
    if table is not None:
        if len(table["weight"]) > len(job.base.own_table):
            raise InputError(
                f"{job.adapter.path}: {len(table['weight']) - 1} classes do not fit into the base's label table of "
                f"{len(job.base.own_table) - 1}; export with --to merged"
            )
        table["weight"] = dit_names.pad_table(table["weight"], job.base.own_table)
    return whole


def _stock(job: Job) -> tuple[dict[str, LowRank], dict[str, dict[str, Tensor]]]:
    """Changes and whole modules under the names of the host's own classes."""
    changes, whole = _changes(job), _whole(job)
    if job.base.host != "diffusers":
        return changes, whole
    depth = len(job.base.model.transformer_blocks)
    renamed: dict[str, LowRank] = {}
    for module, change in changes.items():
        names = dit_names.stock_modules(module, depth)
        renamed |= dict(zip(names, split_rows(change, 3) if module.endswith(".to_qkv") else [change] * len(names)))
    return renamed, dit_names.stock_whole(whole, depth)


def _to_peft(job: Job, folder: Path) -> tuple[dict, Tensor, Tensor]:
    changes, whole = _stock(job)
    layers = {module: _lora_parts(change) for module, change in changes.items()}
    config = _lora_config(changes)
    config.modules_to_save = list(whole) or None
    if not changes:
        config.target_modules = "dummy-target-modules"
    info = _exported_info(job)
    write_adapter(config, Layout(layers, whole).to_tensors(), info, folder)
    return {"file": "", "carried": _carried(changes, whole)}, *_outputs(job)


def _to_diffusers(job: Job, folder: Path) -> tuple[dict, Tensor, Tensor]:
    changes, whole = _stock(job)
    _require_changes(job, changes)
    config = _lora_config(changes)
    metadata = {
        f"transformer.{name}": getattr(config, name)
        for name in ("r", "lora_alpha", "lora_bias", "bias", "use_dora", "use_rslora")
    }
    metadata["transformer.target_modules"] = sorted(changes)
    tensors = {
        f"transformer.{module}.{part}": tensor.contiguous()
        for module, change in changes.items()
        for part, tensor in _lora_parts(change).items()
    }
    header = {**_exported_info(job).to_header(), "lora_adapter_metadata": json.dumps(metadata, sort_keys=True)}
    (folder / LORA_FILE).write_bytes(serialize(tensors, header))
    if whole:
        flat = {f"{module}.{key}": t.contiguous() for module, parts in whole.items() for key, t in parts.items()}
        save_file(flat, folder / MODULES_FILE, {"format": "pt"})
    (folder / "README.md").write_text(_DIFFUSERS_README.format(base=job.adapter.info.base), encoding="utf-8")
    return {"file": "", "carried": _carried(changes, whole)}, *_outputs(job)


def _to_comfy(job: Job, folder: Path) -> tuple[dict, Tensor, Tensor]:
    changes, whole = _changes(job), _whole(job)
    tensors = {}
    for name, change in _joined(changes).items():
        stem = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = change.down.clone().contiguous()
        tensors[f"{stem}.lora_up.weight"] = change.up.clone().contiguous()
        tensors[f"{stem}.alpha"] = torch.tensor(float(change.down.shape[0]))
        if change.shift is not None:
            tensors[f"{stem}.diff_b"] = change.shift.clone().contiguous()
    for module, parts in whole.items():
        stem = f"lora_unet_{dit_names.facebook_module(module).replace('.', '_')}"
        start = {"weight": job.base.own_table} if module == dit_names.LABEL_TABLE else None
        start = start or job.base.model.get_submodule(module).state_dict()
        for key, suffix in (("weight", "diff"), ("bias", "diff_b")):
            if key in parts:
                tensors[f"{stem}.{suffix}"] = parts[key] - start[key].to(parts[key])
    rank = max((change.down.shape[0] for change in changes.values()), default=1)
    header = {
        **_exported_info(job).to_header(),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{float(rank)}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "dit/lora",
        "modelspec.title": job.adapter.path.stem,
    }
    (folder / "lora.safetensors").write_bytes(serialize(tensors, header))
    return {"file": "lora.safetensors", "carried": _carried(changes, whole)}, *_outputs(job)


@torch.no_grad()
def _to_merged(job: Job, folder: Path) -> tuple[dict, Tensor, Tensor]:
    for module, parts in job.layout.layers.items():
        if "onelora_beta" in parts and job.base.model.get_submodule(module).bias is None:
            raise InputError(f"{job.adapter.path}: {module} has no bias in the base, so its beta cannot be merged")
    base, inputs = job.base, job.base.example()
    plain = output_of(base.model, inputs)
    adapted = job.adapter.attach(base.model)
    hosts.check_mergeable(adapted.get_base_model(), job.layout.layers)  # adapters of other methods do not ask
    merged = adapted.merge_and_unload().eval()
    expected = output_of(merged, inputs)
    base.save_merged(merged, folder, _DTYPES[job.dtype], job.max_shard_size)
    return {"file": "", "carried": ["everything"]}, expected, plain


_WRITERS: dict[str, Callable] = {
    "peft-lora": _to_peft,
    "diffusers": _to_diffusers,
    "comfy": _to_comfy,
    "merged": _to_merged,
}


def _require_changes(job: Job, changes: dict) -> None:
    if not changes:
        raise InputError(f"{job.adapter.path}: changes no linear layer, so there is no LoRA of it; use --to merged")


def _lora_config(changes: dict[str, LowRank]) -> LoraConfig:
    """PEFT's config; ``lora_alpha`` is the rank, as its default of 8 would be 8 times too strong for rank 1."""
    rank = next(iter(changes.values())).down.shape[0] if changes else 1
    has_shift = any(change.shift is not None for change in changes.values())
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=exact_pattern(changes), lora_bias=has_shift)


def _lora_parts(change: LowRank) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory
    parts = {"lora_A.weight": change.down.clone(), "lora_B.weight": change.up.clone()}
    return parts if change.shift is None else {**parts, "lora_B.bias": change.shift.clone()}


def _joined(changes: dict[str, LowRank]) -> dict[str, LowRank]:
    """Changes under the original DiT's names; q, k, v become one."""
    result = {}
    for module, change in changes.items():
        stem, _, part = module.rpartition(".")
        if part in dit_names.QKV:
            if part == "to_q":
                missing = [name for name in dit_names.QKV if f"{stem}.{name}" not in changes]
                if missing:
                    raise InputError(f"{stem}: only some of q, k, v are adapted, which one joined layer cannot hold")
                joined = join_rows([changes[f"{stem}.{name}"] for name in dit_names.QKV])
                result[dit_names.facebook_module(f"{stem}.to_qkv")] = joined
        else:
            result[dit_names.facebook_module(module)] = change
    return result


def _carried(changes: dict[str, LowRank], whole: dict[str, dict]) -> list[str]:
    carried = ["beta"] if any(change.shift is not None for change in changes.values()) else []
    return carried + list(dict.fromkeys(dit_names.own_module(module) for module in whole))


def _exported_info(job: Job):
    """The header of an export; ``exported`` lets `importing` bring it back to what it was."""
    info = job.adapter.info
    exported = {"method": info.method, "fuse_qkv": bool(info.extra.get("fuse_qkv"))}
    return replace(info, method="lora", extra={**info.extra, "fuse_qkv": False, "exported": exported}, versions={})


def _reloaded(job: Job, to: str, export_path: Path, expected: Tensor) -> float:
    """Relative error of the export's outputs in a fresh process without this package."""
    inputs = job.base.example()
    if to != "merged":
        inputs = job.base.host_inputs(inputs)
    base = {
        "host": job.base.host,
        "source": job.base.host_source(),
        "options": job.base.host_options(),
        "class": type(job.base.model).__name__,
    }
    with tempfile.TemporaryDirectory() as place:
        tensors, job_file = Path(place) / "tensors.safetensors", Path(place) / "job.json"
        save_file(
            {f"input.{key}": value for key, value in inputs.items()} | {"output": expected.contiguous()}, tensors
        )
        record = {"target": to, "base": base, "export": str(export_path.resolve()), "tensors": str(tensors)}
        job_file.write_text(json.dumps(record), encoding="utf-8")
        command = [sys.executable, "-I", "-W", "ignore", str(_RELOAD), str(job_file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        raise InputError(
            f"{job.adapter.path}: exported to {to}, but it does not load without onelora_vision ({reason})"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])["error"]


_DIFFUSERS_README = """\
# LoRA for diffusers

Made with onelora_vision for the base `{base}`. diffusers' DiT class has no LoRA loader of its own; with its mixin:

```python
from diffusers import DiTPipeline, DiTTransformer2DModel
from diffusers.loaders import PeftAdapterMixin
from safetensors.torch import load_file

DiT = type("DiT", (DiTTransformer2DModel, PeftAdapterMixin), {{}})
model = DiT.from_pretrained("{base}", subfolder="transformer")
model.load_state_dict(load_file("modules.safetensors"), strict=False)  # the new classes' embedding, if the file is there
model.load_lora_adapter(".", prefix="transformer", weight_name="pytorch_lora_weights.safetensors")
```
"""
