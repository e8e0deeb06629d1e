"""Trainings on disk: who sees them, what is known of them, and that they are processes of their own."""

import json
import os
import subprocess
import sys
import time
import zipfile

import psutil
import pytest
from PIL import Image

from app.trainings.curve import POINTS, TRAINING, VALIDATION, loss_points, newest_evaluation
from app.trainings.guide import KINDS, METHODS, Settings
from app.trainings.run import Phase, Training
from app.trainings.runs import Trainings, owner_of
from onelora_vision.errors import InputError

KIND, METHOD = next(iter(KINDS)), next(iter(METHODS))


def trainings(folder, **more):
    return Trainings(folder, lambda task, name: name or "embedded", **more)


@pytest.fixture
def make(tmp_path):
    """A training in a folder, as the app left it."""

    def make(name="2026-01-02 10.00.00 dit", secret="me", log="", results=None, metrics=(), process=None, steps=100):
        folder = tmp_path / name
        (folder / "run" / "logs").mkdir(parents=True)
        settings = Settings.checked(KIND, METHOD, steps=steps)
        run = Training(folder, settings, "embedded", owner_of(secret), "mine-dit", {}, process)
        run.write()
        (folder / "log.txt").write_text(log)
        if results:
            (folder / "run" / "results.json").write_text(json.dumps(results))
        lines = "".join(json.dumps(row) + "\n" for row in metrics)
        (folder / "run" / "logs" / "metrics.jsonl").write_text(lines + '{"step": 1')
        return run

    return make


@pytest.fixture
def child():
    """A process that waits, and when it started."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process, (process.pid, psutil.Process(process.pid).create_time())
    process.kill()
    process.wait()
    process.stdin.close()


def test_what_is_known_of_a_training_is_read_from_its_folder(make, tmp_path):
    rows = [{"step": 0, "validation/loss": 2.0, "time": 0.0}]
    rows += [{"step": step, "time": 10.0 + 0.5 * step, "train/loss": 1.0 / step} for step in range(1, 41)]
    run = make(metrics=rows, log="measuring …\nstopped by SIGTERM while training; the last checkpoint is …")
    (found,) = trainings(tmp_path).of("me")
    assert found == run and found.phase() is Phase.STOPPED
    progress = trainings(tmp_path).progress(found)
    assert (progress.step, progress.steps, progress.seconds_left) == (40, 100, None)
    assert progress.text.startswith("stopped by SIGTERM")


def test_a_running_one_says_how_long_it_will_take(make, tmp_path, child):
    process, identity = child
    rows = [{"step": step, "time": 0.5 * step, "train/loss": 1.0} for step in range(1, 41)]
    rows += [{"step": step, "time": 9000 + 0.5 * step, "train/loss": 1.0} for step in range(41, 51)]  # it was resumed
    run = make(metrics=rows, process=identity)
    all_runs = trainings(tmp_path)
    progress = all_runs.progress(run)
    assert progress.phase is Phase.RUNNING and progress.text == "step 50 of 100"
    assert 25 <= progress.seconds_left <= 60
    with pytest.raises(InputError, match="is running"):
        run.remove()
    with pytest.raises(InputError, match="a training is running: wait"):
        all_runs.start("me", run.settings)
    process.kill()
    process.wait()
    assert run.phase() is Phase.STOPPED
    another = Training.read(run.folder)
    another.process = (os.getpid(), 12345.0)  # the number of a process, but another one
    assert not another.is_running()


def test_finished_and_failed(make, tmp_path):
    metrics = {"before": {"top1": 0.5}, "after": {"top1": 0.9}}
    done = make("a dit", results={"phase": "complete", "metrics": metrics}, log="next: …")
    failed = make("b dit", log="loading\nerror: no images in data")
    assert trainings(tmp_path).progress(done).text == "finished" and done.before_and_after()[1] == {"top1": 0.9}
    assert failed.phase() is Phase.FAILED and failed.last_line() == "error: no images in data"
    with pytest.raises(InputError, match="finished: start a new"):
        trainings(tmp_path).resume("me", "a dit")


def test_strangers_see_and_touch_nothing_of_each_other(make, tmp_path):
    make("a dit", secret="me")
    make("b dit", secret="you")
    shared = trainings(tmp_path, is_shared=True)
    assert [run.name for run in shared.of("me")] == ["a dit"]
    assert shared.of("") == [] and shared.of(owner_of("me")) == []
    for act in (shared.get, shared.stop, shared.resume, shared.remove):
        for secret in ("you", "", owner_of("me")):
            with pytest.raises(InputError, match="no training 'a dit' of yours"):
                act(secret, "a dit")
    assert len(trainings(tmp_path).of("")) == 2  # who sits at the machine sees all
    assert (tmp_path / "a dit").is_dir()


def test_names_lead_nowhere_and_broken_folders_are_passed_by(make, tmp_path):
    make("a dit")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "job.json").write_text('{"settings": 3}')
    (tmp_path / "c").mkdir()
    found = trainings(tmp_path)
    assert [run.name for run in found.of("me")] == ["a dit"]
    for name in ("../a dit", "", ".", "/etc", "a dit/run"):
        with pytest.raises(InputError, match="no training"):
            found.get("me", name)


def test_limits_and_a_network_without_leave(make, tmp_path):
    settings = Settings.checked(KIND, METHOD)
    with pytest.raises(InputError, match="training is off"):
        trainings(tmp_path / "new", refusal="training is off").start("me", settings)
    assert not (tmp_path / "new").exists()
    make("a dit")
    with pytest.raises(InputError, match="1 trainings are kept already: delete one"):
        trainings(tmp_path, kept=1).start("me", settings)
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "1.png", "a/1.png")
    with pytest.raises(InputError, match="depth needs measured depth"):
        trainings(tmp_path).start("me", Settings.checked("Estimate depth", METHOD), tmp_path / "x.zip")
    with pytest.raises(InputError, match="one class only"):
        trainings(tmp_path).start("me", Settings.checked("Recognise the classes", METHOD), tmp_path / "x.zip")
    assert [run.name for run in trainings(tmp_path).of("me")] == ["a dit"]


def test_only_what_this_app_wrote_is_deleted(make, tmp_path):
    run = make("a dit")
    (run.folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"did not write: notes\.txt"):
        trainings(tmp_path).remove("me", "a dit")
    (run.folder / "notes.txt").rename(run.folder / "run" / "notes.txt")
    with pytest.raises(InputError, match=r"did not write: .*notes\.txt"):
        trainings(tmp_path).remove("me", "a dit")
    (run.folder / "run" / "notes.txt").unlink()
    (run.folder / "run" / ".onelora-files").write_text('{"kind": "run"}\n')
    trainings(tmp_path).remove("me", "a dit")
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_cannot_train_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("app.trainings.run.flags_of", lambda *settings: ["dit", "--learning_rat", "1"])
    found = trainings(tmp_path / "t")
    run = found.start("me", Settings.checked(KIND, METHOD, steps=1))
    assert os.getsid(run.process[0]) == run.process[0]  # it outlives this process
    psutil.Process(run.process[0]).wait(120)
    progress = found.progress(Training.read(run.folder))
    assert progress.phase is Phase.FAILED
    assert progress.text == "error: unknown flag --learning_rat; did you mean '--learning_rate'?"
    found.remove("me", run.name)


def test_curves_are_short_and_leave_out_what_is_no_number():
    rows = [{"step": step, "train/loss": float(step), "time": time.time()} for step in range(1, 1001)]
    rows += [{"step": 500, "validation/loss": 0.25}, {"step": 3, "validation/loss": None}, {"step": 4}]
    points = loss_points(rows)
    assert len([point for point in points if point[2] == TRAINING]) <= POINTS
    assert [point for point in points if point[2] == VALIDATION] == [(500, 0.25, VALIDATION)]
    assert points == sorted(points) and points[-1][:2] == (1000, 1000.0)
    evaluations = [{"step": 1, "evaluation/top1": 0.5}, {"step": 2, "evaluation/top1": 0.75}, {"step": 2}]
    assert newest_evaluation(evaluations) == {"top1": 0.75}
