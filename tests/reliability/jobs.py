"""Tiny jobs of the training scripts: their arguments, and everything they leave behind that must be the same."""

import hashlib
import importlib
import json
import shutil
import tempfile
from pathlib import Path

import environment  # noqa: F401
import numpy as np
import torch
from PIL import Image
from tiny_hosts import save_base
from tiny_language import save_llama

SCRIPTS = ("classification", "dit", "depth", "language")
STEPS = 8
COMMON = {
    "max_train_steps": STEPS,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "eval_batch_size": 4,
    "checkpointing_steps": 2,
    "checkpoints_total_limit": 2,
    "validation_steps": 4,
    "use_ema": "true",
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "num_validation_images": 1,
    "report_to": "tensorboard",
}


# What the scripts import when they come to need it: done once here, it need not be done in each run forked off.
LATER = ("diffusers.optimization", "jsonargparse", "matplotlib.backends.backend_agg", "matplotlib.figure")
LATER += ("torch.utils.tensorboard", "tensorboard.backend.event_processing.event_accumulator")


def main_of(script: str):
    """The script's ``main``, as its command line calls it."""
    for name in LATER:
        importlib.import_module(name)
    return importlib.import_module(f"train_scripts.train_{script}").main


def make_job(script: str, folder: Path) -> dict:
    """Build the base and the data of a job below ``folder``; returns its flags, without ``--output_dir``."""
    flags, base, data = dict(COMMON), folder / f"{script}-base", folder / f"{script}-data"
    if script == "language":
        del flags["num_validation_images"]
        flags |= {"pretrained_model_name_or_path": save_llama(base), "data_file": write_rows(data)}
        flags |= {"prompt_template": "none", "validation_fraction": 0.2, "max_new_tokens": 3, "num_examples": 2}
        return {**flags, "exact_match_samples": 3, "metric_for_best_model": "loss", "greater_is_better": "false"}
    host = {"classification": "timm", "dit": "diffusers", "depth": "transformers"}[script]
    flags["pretrained_model_name_or_path"] = save_base(host, base)
    if script == "depth":
        flags |= {"dataset_name": "jsonl", "train_data_dir": write_frames(data), "metric_for_best_model": "rmse"}
        return {**flags, "resolution": "28x28", "greater_is_better": "false"}
    flags |= {"dataset_name": "imagefolder", "data_dir": write_images(data), "random_flip": "true"}
    if script == "classification":
        del flags["num_validation_images"]
        return {**flags, "resolution": 32, "validation_fraction": 0.3, "metric_for_best_model": "top1", "mixup": 0.4}
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0, img_size=224).state_dict(), folder / "features.safetensors")
    flags |= {"cache_latents": "true", "latents_dir": folder / "latents", "num_inference_steps": 2}
    flags |= {"fid_features": "dinov2", "fid_weights": folder / "features.safetensors", "fid_timm_model": "test_vit"}
    return {**flags, "fid_num_samples": 4, "metric_for_best_model": "fd_dinov2", "greater_is_better": "false"}


def write_images(folder: Path, classes=("a", "b"), count: int = 5, seed: int = 0) -> Path:
    """Class folders of noise, 20 x 20 pixels, in a training and a test split."""
    draw = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(0, 255, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def write_frames(folder: Path, count: int = 6) -> Path:
    """Pictures of noise with depths of 1 to 9 m, as a metadata.jsonl: the last two are for the test."""
    folder.mkdir(parents=True)
    draw, lines = np.random.default_rng(0), []
    for index in range(count):
        Image.fromarray(draw.integers(0, 255, (28, 28, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        np.save(folder / f"{index}.npy", draw.uniform(1, 9, (28, 28)))
        split = "train" if index < count - 2 else "test"
        lines.append({"image": f"{index}.png", "depth": f"{index}.npy", "scale": 1.0, "split": split})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def write_rows(folder: Path, count: int = 20) -> Path:
    """A file of questions whose answers differ in length."""
    folder.mkdir(parents=True)
    rows = [{"query": f"{n}?", "response": "y" * (1 + 7 * n % 11) + f" The answer is: {n}"} for n in range(count)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "rows.jsonl"


def arguments(flags: dict, output: Path, **changes) -> list[str]:
    """The command line of a job that writes into ``output``."""
    return [f"--{name}={value}" for name, value in {**flags, "output_dir": output, **changes}.items()]


# Files that say when and how long, or that are compared by what they hold.
_COMPARED_OTHERWISE = (
    "results.json",
    "report.html",
    "config.yaml",
    "state.json",
    "training_state.pt",
    ".onelora-files",
    ".onelora-lock",
)


def outcome(output: Path) -> dict:
    """What must not depend on interruptions: adapters, averages, optimizer, figures, pictures, losses and logs."""
    results = json.loads((output / "results.json").read_text())
    names = ("phase", "metrics", "best", "steps", "skipped_steps", "best_step", "protocol", "trainable_parameters")
    found = {name: results[name] for name in names}
    for file in sorted(output.rglob("*")):
        name = file.relative_to(output)
        if file.is_file() and file.name not in _COMPARED_OTHERWISE and name.parts[0] != "logs":
            found[str(name)] = hashlib.sha256(file.read_bytes()).hexdigest()
    last = max((path for path in output.glob("checkpoint-*")), key=lambda path: int(path.name.split("-")[1]))
    state = torch.load(last / "training_state.pt", weights_only=True)
    state["progress"].update(seconds=0, data_seconds=0)
    found["training state"] = _plain(state)
    found["files"] = sorted(path.name for path in output.iterdir())
    found["logs"] = logged(output)
    return found


def logged(output: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves as TensorBoard shows them: step and value of each figure.

    TensorBoard reads event files by name, and a name holds the second of the start, then the process's number as text.
    Runs in forks resume within a second, which no command does, so the files are read in the order of their writing.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = sorted((output / "logs" / "onelora_vision").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    with tempfile.TemporaryDirectory() as ordered:
        for index, file in enumerate(files):
            shutil.copyfile(file, Path(ordered) / f"events.out.tfevents.{index:010d}")
        events = EventAccumulator(ordered, size_guidance={"scalars": 0}).Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in sorted(events.Tags()["scalars"])}


def _plain(value):
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value.double().tolist() if isinstance(value, torch.Tensor) else value
