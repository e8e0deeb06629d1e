"""The runs of a sweep in the layout of PEFT's ``method_comparison``, so that results can be compared with PEFT's.

``experiments/<method>/<name>/adapter_config.json`` and ``training_params.json``; ``results/<method>--<name>.json`` with
the blocks ``run_info``, ``train_info`` and ``meta_info``. Values that PEFT samples during a run, but we do not, are
null.
"""

import datetime
import json
import platform
from typing import Any

from onelora_vision.adapters.container import CONFIG_FILE, WEIGHTS_FILE
from onelora_vision.storage.files import write_json
from onelora_vision.sweep.plan import Run, Sweep
from onelora_vision.training.results import RESULTS


def write_layout(sweep: Sweep) -> None:
    """Write both folders inside the sweep's folder, for completed final runs."""
    for method in sweep.methods:
        for run in sweep.finals(method):
            result = sweep.result(run)
            if result is not None and "failed" not in result:
                _write_run(sweep, run, result)


def _write_run(sweep: Sweep, run: Run, result: dict[str, Any]) -> None:
    place = sweep.place(run)
    name = f"{sweep.task}-lr_{run.rate:g}-seed_{run.seed}"
    config = json.loads((place / "adapter" / CONFIG_FILE).read_text(encoding="utf-8"))
    folder = sweep.folder / "experiments" / run.arm.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, config)
    write_json(folder / "training_params.json", result["config"])
    written = datetime.datetime.fromtimestamp((place / RESULTS).stat().st_mtime, datetime.UTC)
    total = result.get("total_parameters")
    results = sweep.folder / "results"
    results.mkdir(exist_ok=True)
    report = {
        "run_info": {
            "created_at": written.isoformat(),
            "total_time": result["seconds_total"],
            "experiment_name": f"{run.arm.folder}/{name}",
            "peft_branch": None,
            "train_config": result["config"],
            "peft_config": config,
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": None,
            "accelerator_memory_max": result["peak_memory_bytes"],
            "accelerator_memory_reserved_99th": None,
            "train_time": result["seconds_per_step"] * result["steps"],
            "file_size": (place / "adapter" / WEIGHTS_FILE).stat().st_size,
            "num_trainable_params": result["trainable_parameters"],
            "num_total_params": total,
            "status": "success",
            "metrics": [{"step": result["steps"], **result["metrics"]["after"]}],
        },
        "meta_info": {
            "model_info": {"id": result["config"].get("pretrained_model_name_or_path")},
            "dataset_info": {"id": result["config"].get("dataset_name"), "protocol": result["protocol"]},
            "package_info": result["versions"],
            "system_info": {"system": platform.system(), "machine": platform.machine()},
            "pytorch_info": result["versions"].get("torch"),
        },
    }
    write_json(results / f"{run.arm.folder}--{name}.json", report)
