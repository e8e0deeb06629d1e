"""Checkpoints: complete or absent, with only the trained parameters, and enough state to resume bit for bit.

A ``checkpoint-<step>`` folder holds ``trained.safetensors`` (the trained parameters, fp32), with ``use_ema`` also
``ema.safetensors``, ``training_state.pt`` (optimizer, schedule, loss scaler, progress; plain tensors and numbers, read
with ``weights_only``) and ``state.json`` (the step and the settings). The order of the data and all random numbers are
functions of the seed and the step, so nothing else is needed.
"""

import dataclasses
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from onelora_vision.errors import InputError, TrainingError, WriteError
from onelora_vision.storage.files import TEMPORARY_PREFIX, atomic_directory, torch_save
from onelora_vision.training.config import TrainingConfig
from onelora_vision.training.ema import EMA
from onelora_vision.training.optim import trained_parameters
from onelora_vision.training.rank_allocation import RankAllocation


@dataclass
class Progress:
    """How far a run has got. ``history`` has one value per step: loss, grad_norm, learning_rate, …

    ``seconds`` is the time spent in steps, ``data_seconds`` the part of it spent waiting for batches.
    ``validation_losses`` are (step, loss) pairs, always on the same ``validation_samples`` samples.
    """

    step: int = 0
    evaluated_step: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    best_step: int | None = None
    best_metric: float | None = None
    evaluations: list = field(default_factory=list)
    history: dict = field(default_factory=dict)
    validation_samples: int = 0
    validation_losses: list = field(default_factory=list)


@dataclass
class RunState:
    """Everything that changes during training. ``model`` is the bare model, not accelerate's wrapper.

    ``is_whole`` is false while a step is changing the state: a checkpoint written then would mix two steps.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler | None
    ema: EMA | None
    allocation: RankAllocation | None = None
    progress: Progress = field(default_factory=Progress)
    is_whole: bool = True


def run_settings(config: TrainingConfig, num_samples: int, samples_per_step: int) -> dict:
    """Settings that a resumed run must share with the interrupted one to continue where that one stopped."""
    fixed = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if not f.metadata.get("may_change")}
    return {**fixed, "number of training samples": num_samples, "samples per step": samples_per_step}


def require_same_run(folder: str | Path, model: nn.Module, settings: dict, defaults: dict) -> None:
    """Refuse a checkpoint that the run cannot continue from, by its settings and the shapes of its tensors.

    Args:
        model: the bare model, whose trained parameters will be loaded from the checkpoint.
        settings: of this run. defaults: of its settings, for those missing from older checkpoints.

    Raises:
        InputError: the folder is not a checkpoint, is damaged, or was written by a run with other settings.
    """
    folder = Path(folder)
    state = _read_state(folder)
    if state is None:
        raise InputError(f"{folder} is not a checkpoint: it has no readable state.json and trained.safetensors")
    known = {name: value for name, value in defaults.items() if name in settings}
    _refuse_other_settings(folder, known | state["settings"], settings)
    try:
        with safetensors.safe_open(folder / "trained.safetensors", "pt") as file:
            saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    _require_shapes(folder, saved, trained_parameters(model))


def save_checkpoint(output_dir: str | Path, run: RunState, settings: dict) -> Path:
    """Write ``checkpoint-<step>`` atomically.

    Raises:
        TrainingError: it could not be written (full disk); earlier checkpoints are unaffected.
    """
    folder = Path(output_dir) / f"checkpoint-{run.progress.step}"
    about = json.dumps({"step": run.progress.step, "settings": settings}, indent=2)
    try:
        with atomic_directory(folder, replace=True) as temporary:
            (temporary / "state.json").write_text(about, encoding="utf-8")
            torch_save(_training_state(run), temporary / "training_state.pt")
            _save_tensors(trained_parameters(run.model), temporary / "trained.safetensors")
            if run.ema is not None:
                _save_tensors(run.ema.average, temporary / "ema.safetensors")
    except WriteError as error:
        last = latest_checkpoint(output_dir)
        raise TrainingError(f"{error}; the last good checkpoint is {last or 'none'}") from error
    return folder


def _save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors as they are: of full fine-tuning, each copy of all of them is as large as the model."""
    safetensors.torch.save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def _training_state(run: RunState) -> dict:
    return {
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "scaler": run.scaler.state_dict() if run.scaler else None,
        "ema_updates": run.ema.updates if run.ema else 0,
        "allocation": run.allocation.state_dict() if run.allocation else None,
        "progress": dataclasses.asdict(run.progress),
    }


def load_checkpoint(folder: str | Path, run: RunState) -> None:
    """Restore ``run`` to the state in a checkpoint that `require_same_run` has accepted.

    Raises:
        InputError: the checkpoint is damaged, or does not fit the model.
    """
    folder = Path(folder)
    try:
        trained = safetensors.torch.load_file(folder / "trained.safetensors")
        average = safetensors.torch.load_file(folder / "ema.safetensors") if run.ema else {}
        rest = torch.load(folder / "training_state.pt", map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError) as error:
        raise _damaged(folder, error) from error
    _copy_into(trained_parameters(run.model), trained, folder)
    if run.ema:
        _copy_into(run.ema.average, average, folder)
        run.ema.updates = rest["ema_updates"]
    run.optimizer.load_state_dict(rest["optimizer"])
    run.scheduler.load_state_dict(rest["scheduler"])
    if run.scaler:
        run.scaler.load_state_dict(rest["scaler"])
    if run.allocation:
        run.allocation.load_state_dict(rest["allocation"])
    run.progress = Progress(**rest["progress"])


@torch.no_grad()
def _copy_into(targets: dict[str, torch.Tensor], values: dict[str, torch.Tensor], folder: Path) -> None:
    _require_shapes(folder, {name: tuple(value.shape) for name, value in values.items()}, targets)
    for name, target in targets.items():
        target.copy_(values[name])


def _require_shapes(folder: Path, saved: dict[str, tuple], targets: dict[str, torch.Tensor]) -> None:
    shapes = {name: tuple(target.shape) for name, target in targets.items()}
    if shapes != saved:
        name = min(name for name in shapes.keys() | saved.keys() if shapes.get(name) != saved.get(name))
        raise InputError(
            f"{folder} does not fit this model: {name} was {saved.get(name, 'absent')}, is {shapes.get(name, 'absent')}"
        )


def _refuse_other_settings(folder: Path, before: dict, now: dict) -> None:
    now = json.loads(json.dumps(now))  # after a JSON round trip: tuples become lists
    if before.get("task", now.get("task")) != now.get("task"):
        raise InputError(f"cannot resume {folder}: it is a checkpoint of another task, {before['task']}")
    changes = [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in {**before, **now}
        if name != "task" and before.get(name) != now.get(name)
    ]
    if changes:
        raise InputError(f"cannot resume {folder} with other settings: {'; '.join(changes)}")


def _damaged(folder: Path, error: Exception) -> InputError:
    return InputError(f"{folder} is damaged: {error}; resume from another checkpoint")


def find_checkpoint(output_dir: str | Path, wanted: str | None) -> Path | None:
    """The folder named by ``--resume_from_checkpoint``; None to start from the beginning (also without any ``latest``).

    Raises:
        InputError: the folder does not exist.
    """
    latest = latest_checkpoint(output_dir)
    if wanted in ("latest", None):
        return latest if wanted else None
    if not Path(wanted).is_dir():
        raise InputError(f"--resume_from_checkpoint {wanted}: no such folder; the latest is {latest or 'none'}")
    return Path(wanted)


def latest_checkpoint(output_dir: str | Path) -> Path | None:
    """The complete checkpoint with the highest step."""
    return max(_checkpoints(output_dir), key=_step, default=None)


def rotate(output_dir: str | Path, limit: int | None) -> None:
    """Delete the oldest complete checkpoints beyond ``limit``; call this once the newest is in place."""
    if limit is None:
        return
    for folder in sorted(_checkpoints(output_dir), key=_step)[:-limit]:
        # Renamed first: an interrupted deletion must not leave half a checkpoint under a checkpoint's name.
        doomed = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}")
        os.replace(folder, doomed)
        shutil.rmtree(doomed)


def _checkpoints(output_dir: str | Path) -> list[Path]:
    return [
        folder
        for folder in Path(output_dir).glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", folder.name) and _read_state(folder)
    ]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def _read_state(folder: Path) -> dict | None:
    """``state.json`` if the folder is a complete checkpoint."""
    try:
        state = json.loads((folder / "state.json").read_text())
    except (OSError, ValueError):
        return None
    return state if (folder / "trained.safetensors").is_file() else None
