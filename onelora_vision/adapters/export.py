"""Exporting adapters for tools that do not know this package. Each export is verified in a process without it.

The formats are in `formats`. A label table is exported in the size of the base's own table (see
`backbones.dit_names.pad_table`), so the base loads unchanged.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from onelora_vision.adapters.bases import load_base, require_same_base
from onelora_vision.adapters.file import read_adapter
from onelora_vision.adapters.formats import FORMATS, Format, check_format
from onelora_vision.adapters.formats.job import Job, Written
from onelora_vision.adapters.layout import layout_of
from onelora_vision.errors import InputError, listed
from onelora_vision.storage.outputs import check_folder, folder_output
from onelora_vision.tuners import shortcuts

_TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2}
_RELOAD = Path(__file__).with_name("reload.py")


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
    """Export an adapter for other tools into the folder ``output``, reload it without this package, and compare.

    Args:
        to: one of `formats.FORMATS`.
        dtype: data type of the exported tensors.
        max_shard_size: largest size of a merged model's files.
        overwrite: replace an earlier export to the same format (see `outputs`).

    Returns:
        A dictionary with ``file`` (what to load), ``carried`` (what it holds in addition to low-rank changes),
        ``error`` (largest difference of the reloaded outputs) and ``effect`` (what the adapter itself changes), both
        relative to the largest output. For a guidance-distilled adapter, also ``guidance_distillation``.

    Raises:
        InputError: the format cannot hold the adapter (the message lists what it cannot hold), the reloaded export does
            not reproduce the adapter's outputs, or the place is taken; nothing is left behind.
    """
    check_format(to, dtype, max_shard_size)
    format, kind = FORMATS[to], f"{to} export"
    check_folder(output, kind, overwrite=overwrite, inputs=[path, *([base] if base else [])])
    adapter = read_adapter(path)
    loaded = load_base(adapter.info, base)
    require_same_base(adapter.info, adapter.path, loaded)
    if format.host not in ("", loaded.host):
        raise InputError(f"--to {to} is for DiT; this is a {adapter.info.task} adapter: use peft-lora or merged")
    if format.tasks and loaded.task not in format.tasks:
        raise InputError(f"--to {to} is for {listed(format.tasks)}; this is a {adapter.info.task} adapter")
    if not format.computes_itself:
        loaded.compute_like_host(with_config=format.is_model)
    job = Job(adapter, layout_of(adapter.config, adapter.tensors, str(path)), loaded, dtype, max_shard_size)
    if not format.is_model and (bypassed := shortcuts.called_on_request(loaded.model, job.layout.layers)):
        raise InputError(
            f"{path}: without onelora_vision the base reads the weight of {listed(bypassed, 4)} and does not call the "
            "layer, so the adapter would have no effect there; export with --to merged"
        )
    with folder_output(output, kind, overwrite=overwrite) as folder:
        written = format.module.write(job, folder)
        error = _reloaded(job, format, folder / written.file, written)
        if not error <= _TOLERANCE[dtype]:
            raise InputError(
                f"{path}: exported to {to}, but reloaded without onelora_vision its outputs differ by {error:.2g} of "
                f"the largest (allowed {_TOLERANCE[dtype]:g}); nothing was written"
            )
    effect = _relative(written.plain, written.expected)
    result = {"file": written.file, "carried": written.carried, "error": error, "effect": effect}
    if adapter.info.guidance_distillation:
        result["guidance_distillation"] = adapter.info.guidance_distillation
    return {"output": str(output), "to": to, "dtype": dtype, **result}


def _relative(output: Tensor, expected: Tensor) -> float:
    return ((output - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def _reloaded(job: Job, format: Format, export_path: Path, written: Written) -> float:
    """Reload the export in a new process without this package, and return its largest relative error."""
    inputs = job.base.example()
    if not format.is_model:
        inputs = job.base.host_inputs(inputs)
    cases = {}
    for number, (given, expected) in enumerate(((inputs, written.expected), *written.others)):
        cases |= {f"{number}.input.{key}": value for key, value in given.items()}
        cases[f"{number}.output"] = expected.contiguous()
    with tempfile.TemporaryDirectory() as place:
        tensors, job_file = Path(place) / "tensors.safetensors", Path(place) / "job.json"
        save_file(cases, tensors)
        record = {
            "target": format.name,
            "base": job.base.host_call(),
            "export": str(export_path.resolve()),
            "tensors": str(tensors),
        }
        job_file.write_text(json.dumps(record), encoding="utf-8")
        command = [sys.executable, "-I", "-W", "ignore", str(_RELOAD), str(job_file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        raise InputError(
            f"{job.adapter.path}: exported to {format.name}, but it does not load without onelora_vision ({reason})"
        )
    return json.loads(done.stdout.strip().splitlines()[-1])["error"]
