"""Runs that are stopped, or fail, in each of their phases lose nothing, and resuming does only what is missing."""

import contextlib
import json
import os
import resource
import signal
from types import SimpleNamespace

import pytest
import torch
from tiny_run import NoisyColors, TinyConfig, TinyTask, tiny_model

from onelora_vision.adapters.file import read_adapter
from onelora_vision.adapters.kinds import KINDS
from onelora_vision.backbones.base import OwnParts
from onelora_vision.data.stream import evaluation_loader
from onelora_vision.errors import InputError, Stopped, TrainingError
from onelora_vision.tasks.retention import Retention
from onelora_vision.training import job as jobs
from onelora_vision.training.checkpoint import latest_checkpoint
from onelora_vision.training.folder import RunFolder
from onelora_vision.training.results import read_results
from onelora_vision.training.setup import start_run

pytestmark = pytest.mark.usefixtures("blank_figures", "fresh_accelerate")

SETTINGS = {"validation_steps": 3, "metric_for_best_model": "weight", "use_ema": True}


class Reporting(TinyTask):
    """A tiny task with pictures and details; ``fail`` is called at a named moment."""

    fail_at = ""

    def __init__(self, *args, fail=None, fail_at=""):
        super().__init__(*args)
        self.calls, self.fail, self.fail_at = [], fail, fail_at

    def identity(self):
        return super().identity() | {"data": "x"}

    def _note(self, moment):
        self.calls.append(moment)
        if moment == self.fail_at:
            self.fail()

    def evaluate(self, loader, accelerator):
        self._note(f"evaluation {self.forwards and 1 + sum(c.startswith('evaluation') for c in self.calls)}")
        metrics = super().evaluate(loader, accelerator)
        self.details = {"weight": torch.tensor(metrics["weight"])}
        return metrics

    def report(self, folder, step, before, after, accelerator):
        self._note("report")
        (folder / "samples.png").write_text(f"{step} {before['weight']:.6f} {after['weight']:.6f}")

    def save(self, folder, pictures=()):
        self._note(f"save {folder.name}{' with pictures' * bool(pictures)}")
        super().save(folder, pictures)


def kept_by(task, data):
    """A measurement of old data: the sum of what is trained, which notes when it is taken."""

    def evaluate(accelerator):
        task._note("retention")
        return {"top1": sum(p.double().sum().item() for p in task.adapted.parameters() if p.requires_grad)}

    base = SimpleNamespace(with_own_parts=lambda own: contextlib.nullcontext())
    return Retention(base, OwnParts({}), f"10 old images of {data}", data, evaluate)


def run(folder, fail=None, fail_at="", old_data="", shared=False, **settings):
    config = TinyConfig(output_dir=str(folder), **{**SETTINGS, **settings})
    with start_run(config) as started:
        task = Reporting(tiny_model(config), config, fail=fail, fail_at=fail_at)
        loader = started.accelerator.prepare(evaluation_loader(NoisyColors(config), 4))
        validation = loader if shared else started.accelerator.prepare(evaluation_loader(NoisyColors(config), 5))
        try:
            retention = kept_by(task, old_data) if old_data else None
            results = jobs.run_job(started, task, NoisyColors(config), loader, validation, retention=retention)
        finally:
            RunFolder._locks.pop(started.folder.path).close()
    return task.calls, results


def outcome(folder):
    """Everything that must not depend on interruptions."""
    results = json.loads((folder / "results.json").read_text())
    kept = ("metrics", "best", "phase", "steps", "protocol")
    files = {path.name: path.read_bytes() for path in folder.rglob("*.safetensors") if "checkpoint" not in str(path)}
    return {name: results[name] for name in kept} | files | {"samples": (folder / "samples.png").read_text()}


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def crash():
    raise RuntimeError("a bug")


def full_disk():
    raise OSError(28, "No space left on device")


MOMENTS = [
    "evaluation 0",
    "evaluation 3",
    "evaluation 4",
    "save adapter",
    "save best",
    "report",
    "save adapter with pictures",
]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    calls, _ = run(folder)
    return calls, outcome(folder)


def test_the_phases_come_in_order_and_each_is_on_disk_before_the_next(unbroken):
    calls, found = unbroken
    assert calls == [
        "evaluation 0", "evaluation 2", "save best", "evaluation 3", "save best", "save adapter_without_ema",
        "save adapter", "evaluation 4", "evaluation 5", "save best", "report", "save adapter with pictures",
    ]  # fmt: skip
    assert found["phase"] == "complete" and set(found["metrics"]["after"]) == {"accuracy", "weight"}


FAILURES = [terminate, interrupt, crash, full_disk]


def moments_and_failures():
    """All pairs; two of each moment, one of them a signal and the other an error, are not slow."""
    for number, moment in enumerate(MOMENTS):
        for kind, fail in enumerate(FAILURES):
            marks = pytest.mark.slow if (number + kind) % 2 else ()
            yield pytest.param(moment, fail, id=f"{moment}-{fail.__name__}", marks=marks)


@pytest.mark.parametrize(("moment", "fail"), moments_and_failures())
def test_a_failure_in_any_phase_loses_nothing(tmp_path, unbroken, moment, fail):
    with pytest.raises((Stopped, RuntimeError, TrainingError, OSError)) as failed:
        run(tmp_path, fail, moment)
    text = " ".join([str(getattr(failed.value, "message", failed.value)), *getattr(failed.value, "__notes__", [])])
    trained = moment not in ("evaluation 0", "evaluation 3")
    if trained and moment != "save best":
        assert latest_checkpoint(tmp_path).name == "checkpoint-6" and "--resume_from_checkpoint latest" in text
    if moment == "evaluation 0" and fail in (terminate, interrupt):
        assert text.endswith("; start again with the same command, which reuses what is already in the cache")
    if moment in ("evaluation 4", "report", "save adapter with pictures"):
        assert f"the trained adapter is in {tmp_path}/adapter: resume with the same command" in text
        assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    calls, results = run(tmp_path, resume_from_checkpoint="latest")
    assert results["phase"] == "complete"
    assert outcome(tmp_path) == unbroken[1]
    evaluations = sum(call.startswith("evaluation") for call in calls)
    assert evaluations == {"evaluation 3": 3, "save best": evaluations, "evaluation 4": 2, "save adapter": 2}.get(
        moment, 5 if moment == "evaluation 0" else 0
    )


def test_a_complete_run_has_nothing_left_to_do_and_a_longer_one_measures_again(tmp_path):
    run(tmp_path)
    before = outcome(tmp_path)
    assert run(tmp_path, resume_from_checkpoint="latest")[0] == ["save adapter_without_ema"]
    assert outcome(tmp_path) == before
    calls, results = run(tmp_path, resume_from_checkpoint="latest", max_train_steps=8)
    assert "evaluation 0" not in calls and "report" in calls and results["steps"] == 8


def test_an_earlier_run_is_refused_continued_or_replaced(tmp_path):
    run(tmp_path)
    with pytest.raises(InputError, match=r"contains an earlier run .*--overwrite"):
        run(tmp_path, seed=1)
    (tmp_path / "slurm.log").write_text("mine")
    calls, results = run(tmp_path, seed=1, overwrite=True)
    assert calls[0] == "evaluation 0" and results["seed"] == 1
    assert (tmp_path / "slurm.log").read_text() == "mine"


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "adapter/notes.txt", "checkpoint-3/notes.txt"])
def test_files_of_others_are_neither_replaced_nor_deleted(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    for options in ({}, {"overwrite": True}, {"resume_from_checkpoint": "latest"}):
        with pytest.raises(InputError, match=f"{name.split('/')[0]}; move them away"):
            run(tmp_path, **options)
        assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["config.yaml", "adapter/README.md", "validation/mine.png", "checkpoint-6/mine"])
def test_what_was_edited_or_added_in_a_run_is_not_overwritten(tmp_path, name):
    run(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name.split('/')[0]}; move them away"):
        run(tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == "mine" and (tmp_path / "results.json").exists()


def test_a_disk_that_is_full_in_any_write_after_the_training_keeps_the_training(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(TrainingError, match=r"could not write .*; the trained adapter is in .*adapter: resume"):
            run(tmp_path, limit, "report")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run(tmp_path, resume_from_checkpoint="latest")[1]["phase"] == "complete"


def test_results_have_the_fixed_keys_count_whole_modules_apart_and_hold_no_nan(tmp_path, monkeypatch):
    monkeypatch.setattr(Reporting, "evaluate", lambda *args: {"accuracy": float("nan")})
    monkeypatch.setattr(Reporting, "report", TinyTask.report)
    _, written = run(tmp_path, validation_steps=0, metric_for_best_model=None)
    assert json.loads((tmp_path / "results.json").read_text()).keys() == written.keys()
    assert {
        "task", "method", "seed", "trainable_parameters", "adapter_parameters", "metrics", "protocol",
        "seconds_total", "seconds_per_step", "data_seconds_per_step", "peak_memory_bytes", "versions", "config",
    } <= written.keys()  # fmt: skip
    adapter = 2 * ((12 + 36) + (12 + 48))  # rank 1 on qkv and fc1 of two blocks
    assert written["adapter_parameters"] == adapter
    assert written["trainable_parameters"] == adapter + 12 * 3 + 3
    assert written["metrics"] == {"before": {"accuracy": None}, "after": {"accuracy": None}}
    assert written["peak_memory_bytes"] > 50e6


def test_the_results_of_an_interrupted_run_are_not_taken_for_a_run(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, terminate, "evaluation 4")
    with pytest.raises(InputError, match=r"this run was interrupted \(phase 'trained'\); resume it first"):
        read_results(tmp_path)


def test_a_metric_that_is_not_measured_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(InputError, match="acuracy is not evaluated here; did you mean 'accuracy'"):
        run(tmp_path, metric_for_best_model="acuracy")
    assert latest_checkpoint(tmp_path) is None
    calls, _ = run(tmp_path, metric_for_best_model="accuracy")
    assert calls[0] == "evaluation 0"  # the folder can be used again, for nothing was trained


def test_a_method_whose_files_are_not_read_here_is_trained_all_the_same(tmp_path, monkeypatch):
    monkeypatch.delitem(KINDS, "ONELORA")
    run(tmp_path / "run", metric_for_best_model=None, validation_steps=0)
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()


def test_the_old_data_is_measured_before_and_after_and_of_the_best_and_changes_nothing(tmp_path, unbroken):
    calls, results = run(tmp_path, old_data="x")
    assert [call for call in calls if call != "retention"] == unbroken[0]
    assert [calls[i - 1] for i, call in enumerate(calls) if call == "retention"] == [
        "evaluation 0", "evaluation 4", "evaluation 5",
    ]  # fmt: skip
    metrics = {when: found.pop("retention_top1") for when, found in results["metrics"].items()}
    best = results["best"]["metrics"].pop("retention_top1")
    assert best == metrics["after"] != metrics["before"]
    assert results["metrics"] == unbroken[1]["metrics"] and results["best"] == unbroken[1]["best"]
    assert results["retention"] == "10 old images of x"
    info = read_adapter(tmp_path / "adapter").info
    assert info.metrics["after"]["retention_top1"] == metrics["after"] and "10 old images" in info.extra["retention"]
    assert read_adapter(tmp_path / "best").info.metrics["after"]["retention_top1"] == best
    assert "retention_top1" in (tmp_path / "adapter" / "README.md").read_text()
    assert "10 old images of x" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("shared", [False, True])
def test_of_the_best_adapter_the_old_data_is_measured_too_and_the_last_one_is_left_in_the_model(tmp_path, shared):
    settings = {"old_data": "x", "greater_is_better": False, "shared": shared}
    _, results = run(tmp_path, **settings)
    best, after = results["best"]["metrics"], results["metrics"]["after"]
    assert results["best"]["step"] == 3 and best["retention_top1"] != after["retention_top1"]
    found = {name: read_adapter(tmp_path / name) for name in ("best", "adapter")}
    assert found["best"].info.metrics["after"] == best and found["adapter"].info.metrics["after"] == after
    trained = [value for key, value in found["adapter"].tensors.items()]
    assert sum(value.double().sum().item() for value in trained) == pytest.approx(after["retention_top1"], rel=1e-5)


def test_the_old_data_is_measured_once_and_again_when_it_is_other_data(tmp_path):
    run(tmp_path)
    plain = read_adapter(tmp_path / "adapter").tensors
    calls, results = run(tmp_path, old_data="x", resume_from_checkpoint="latest")
    assert calls.count("retention") == 3 and "retention_top1" in results["metrics"]["after"]  # without training again
    assert all(torch.equal(value, plain[key]) for key, value in read_adapter(tmp_path / "adapter").tensors.items())
    assert "retention" not in run(tmp_path, old_data="x", resume_from_checkpoint="latest")[0]
    assert run(tmp_path, old_data="y", resume_from_checkpoint="latest")[0].count("retention") == 3


def test_a_failure_while_the_old_data_is_measured_loses_nothing(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, terminate, "retention", old_data="x")
    calls, results = run(tmp_path, old_data="x", resume_from_checkpoint="latest")
    assert calls[:2] == ["evaluation 0", "retention"] and results["phase"] == "complete"


def test_what_evaluations_do_not_measure_cannot_choose_the_best_adapter(tmp_path):
    with pytest.raises(InputError, match="--metric_for_best_model retention_top1 is not evaluated here"):
        run(tmp_path, old_data="x", metric_for_best_model="retention_top1")
