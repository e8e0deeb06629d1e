"""Each script on its tiny job, in this process: numbers gone wrong, a full disk, and resuming in a changed world."""

import resource
import shutil
from pathlib import Path

import jobs
import pytest
from accelerate.state import AcceleratorState, GradientState

from onelora_vision.storage.files import TEMPORARY_PREFIX
from onelora_vision.training.checkpoint import latest_checkpoint
from onelora_vision.training.folder import RunFolder
from onelora_vision.training.step import OptimizerStep

pytestmark = pytest.mark.usefixtures("blank_figures")

FILES = {"classification": "train/", "dit": "train/", "depth": ".npy", "language": "rows.jsonl line "}
DATA = {"depth": "train_data_dir", "language": "data_file"}
# Less of everything than where runs are killed: no figures, no pictures, no average.
LEAN = {
    "max_train_steps": 4,
    "gradient_accumulation_steps": 1,
    "validation_steps": 0,
    "metric_for_best_model": "null",
    "use_ema": "false",
    "report_to": "none",
}


@pytest.fixture(autouse=True)
def fresh_process():
    """accelerate's settings and the locks last as long as a process; each run here is one to them."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    for handle in RunFolder._locks.values():
        handle.close()
    RunFolder._locks.clear()


@pytest.fixture(scope="module", params=jobs.SCRIPTS)
def job(request, tmp_path_factory):
    """A script's name and its job's flags."""
    flags = {**jobs.make_job(request.param, tmp_path_factory.mktemp(request.param)), **LEAN}
    if request.param == "dit":
        flags |= {"fid_features": "none", "num_validation_images": 0}
    return request.param, flags


def run(job, output: Path, **changes) -> int:
    """The script's exit code."""
    script, flags = job
    with pytest.raises(SystemExit) as ended:
        jobs.main_of(script)(jobs.arguments(flags, output, **changes))
    return ended.value.code


def error_line(capsys) -> str:
    """The one line that a run ended with."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_a_nan_is_reported_with_step_files_and_rate(job, tmp_path, capsys):
    broken = {"learning_rate": 1e30, "max_grad_norm": 0, "adam_epsilon": 1e-30, "lr_scheduler": "constant"}
    broken |= {"lr_warmup_steps": 0, "checkpointing_steps": 1, "method": "sum+scale"}
    assert run(job, tmp_path, **broken) == 1
    line = error_line(capsys)
    assert line.startswith("error: step ") and "learning rate 1e+30" in line and FILES[job[0]] in line
    assert f"the last good checkpoint is {latest_checkpoint(tmp_path)};" in line
    assert not (tmp_path / "adapter").exists()


def test_a_dry_run_reads_a_batch(job, tmp_path, capsys):
    assert run(job, tmp_path / "out", dry_run="true") == 0
    assert "\nfirst batch           " in capsys.readouterr().out
    if job[0] == "language":  # rows are read when the file is opened
        return
    flags, data = job[1], DATA.get(job[0], "data_dir")
    shutil.copytree(flags[data], tmp_path / "data")
    for file in [*(tmp_path / "data").rglob("*.png"), *(tmp_path / "data").rglob("*.npy")]:
        file.write_bytes(b"no image")
    assert run((job[0], {**flags, data: tmp_path / "data"}), tmp_path / "out", dry_run="true") == 2
    assert "cannot be read" in error_line(capsys) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("job", ["classification", "depth"], indirect=True)
def test_data_are_no_place_for_a_run(job, tmp_path, capsys):
    data = DATA.get(job[0], "data_dir")
    assert run(job, Path(job[1][data])) == 2
    assert error_line(capsys).endswith(f"is --{data}: choose a folder without data")


def test_a_full_disk_ends_a_run_in_one_line(job, tmp_path, capsys, monkeypatch):
    unlimited, update = resource.getrlimit(resource.RLIMIT_FSIZE), OptimizerStep._update

    def update_until_full(step):
        if step.state.progress.step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, unlimited[1]))
        update(step)

    monkeypatch.setattr(OptimizerStep, "_update", update_until_full)
    try:
        assert run(job, tmp_path) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    last = tmp_path / "checkpoint-2"
    expected = f"error: could not write {tmp_path}/checkpoint-4: File too large; the last good checkpoint is {last}"
    assert error_line(capsys) == expected
    assert [path.name for path in tmp_path.glob("*checkpoint*")] == ["checkpoint-2"]
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))


@pytest.mark.parametrize("job", ["depth"], indirect=True)  # the logs are the loop's: one script will do
def test_logs_that_do_not_fit_end_a_run_in_one_line(job, tmp_path, capsys):
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, unlimited[1]))
    try:
        code = run(job, tmp_path, report_to="tensorboard", max_train_steps=400, checkpointing_steps=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert code == 1
    kept = f"the metrics of the base are in {tmp_path}/results.json: resume with the same command"
    assert error_line(capsys).startswith(f"error: could not write {tmp_path}/logs: File too large; {kept}")


def test_a_changed_world_is_refused_with_what_has_changed(job, tmp_path, capsys):
    script, flags = job
    output, data = tmp_path / "out", DATA.get(script, "data_dir")
    assert run(job, output, max_train_steps=2) == 0
    results = (output / "results.json").read_bytes()
    capsys.readouterr()
    other = shutil.copytree(flags["pretrained_model_name_or_path"], tmp_path / "other-base")
    changed = {"pretrained_model_name_or_path": other, "seed": 7, "method": "lora"}
    assert run(job, output, resume_from_checkpoint="latest", **changed) == 2
    line = error_line(capsys)
    for difference in ("seed was 0, is 7", "method was 'onelora', is 'lora'", f"is '{other}'"):
        assert difference in line
    assert "weights" not in line and "resume with the same command" not in line
    assert (output / "results.json").read_bytes() == results

    write = {"depth": jobs.write_frames, "language": jobs.write_rows}.get(script, jobs.write_images)
    moved = {data: write(tmp_path / "data"), "max_train_steps": 3}
    assert run(job, output, resume_from_checkpoint="latest", **moved) == 0
    change_one(tmp_path / "data")
    results = (output / "results.json").read_bytes()
    capsys.readouterr()
    assert run(job, output, resume_from_checkpoint="latest", **moved) == 2
    assert "other settings: files of the training data was '" in error_line(capsys)
    assert (output / "results.json").read_bytes() == results


@pytest.mark.parametrize("job", ["depth"], indirect=True)
def test_the_run_of_another_task_is_refused_and_left_alone(job, tmp_path, capsys):
    assert run(job, tmp_path / "out", max_train_steps=2) == 0
    results = (tmp_path / "out" / "results.json").read_bytes()
    other = "classification", {**jobs.make_job("classification", tmp_path / "other"), **LEAN}
    capsys.readouterr()
    assert run(other, tmp_path / "out", resume_from_checkpoint="latest") == 2
    line = error_line(capsys)
    assert line.endswith(f"cannot resume {tmp_path}/out/checkpoint-2: it is a checkpoint of another task, depth")
    assert (tmp_path / "out" / "results.json").read_bytes() == results


def change_one(data: Path) -> None:
    """Put another file in the place of the first one, and other rows in the place of all."""
    if (data / "rows.jsonl").exists():
        (data / "rows.jsonl").write_text((data / "rows.jsonl").read_text().replace("answer is", "answer was"))
    elif (data / "metadata.jsonl").exists():
        (data / "0.png").rename(data / "new.png")
        (data / "metadata.jsonl").write_text((data / "metadata.jsonl").read_text().replace("0.png", "new.png", 1))
    else:
        for split in ("train", "test"):
            (data / split / "a" / "0.png").rename(data / split / "a" / "00.png")
            (data / split / "a" / "1.png").rename(data / split / "a" / "01.png")


def test_other_weights_of_the_base_are_refused(job, tmp_path, capsys):
    """The path is the same, but what lies there is another model."""
    from safetensors.torch import load_file, save_file

    flags = job[1]
    base = shutil.copytree(flags["pretrained_model_name_or_path"], tmp_path / "base")
    changes = {"pretrained_model_name_or_path": base, "max_train_steps": 2}
    assert run(job, tmp_path / "out", **changes) == 0
    weights = max(base.rglob("*.safetensors"), key=lambda path: ("transformer" in str(path), path.stat().st_size))
    tensors = {name: value + 0.01 for name, value in load_file(weights).items()}
    save_file(tensors, weights, {"format": "pt"})
    capsys.readouterr()
    assert run(job, tmp_path / "out", **changes, resume_from_checkpoint="latest") == 2
    assert "other settings: weights of the base was '" in error_line(capsys)
