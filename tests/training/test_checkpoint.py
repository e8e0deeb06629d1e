import json
import multiprocessing
import os
import resource

import pytest
import torch
from tiny_run import TinyConfig, run

from onelora_vision.errors import InputError, TrainingError
from onelora_vision.storage.files import TEMPORARY_PREFIX
from onelora_vision.training import checkpoint as ckpt
from onelora_vision.training.folder import LOCK, RunFolder

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def job(folder, **settings):
    return run(TinyConfig(output_dir=str(folder), **{"max_train_steps": 4, "checkpointing_steps": 1, **settings}))


def checkpoints(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith(("checkpoint", TEMPORARY_PREFIX)))


def test_only_what_is_trained_is_in_a_checkpoint(tmp_path):
    _, trained, _ = job(tmp_path)
    folder = tmp_path / "checkpoint-4"
    assert sorted(os.listdir(folder)) == ["state.json", "trained.safetensors", "training_state.pt"]
    saved = ckpt.safetensors.torch.load_file(folder / "trained.safetensors")
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[name], trained[name]) for name in saved)


def test_the_oldest_checkpoints_are_deleted(tmp_path):
    job(tmp_path, checkpoints_total_limit=2)
    assert checkpoints(tmp_path) == ["checkpoint-3", "checkpoint-4"]


def test_a_full_disk_ends_in_an_error_and_the_last_checkpoint_stands(tmp_path):
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(TrainingError) as error:
            job(tmp_path, full_disk_in_step=2, checkpoints_total_limit=1)
    finally:  # before pytest writes its own log
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert f"the last good checkpoint is {tmp_path / 'checkpoint-2'}" in str(error.value)
    assert "File too large" in str(error.value)
    assert checkpoints(tmp_path) == ["checkpoint-2"]
    assert job(tmp_path, resume_from_checkpoint="latest")[0].steps == 4


def test_latest_is_the_highest_complete_one(tmp_path):
    job(tmp_path, max_train_steps=3)
    (tmp_path / "checkpoint-3" / "state.json").write_text('{"step": ')
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-old").mkdir()
    assert ckpt.latest_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert ckpt.latest_checkpoint(tmp_path / "none") is None


def test_latest_of_none_begins_anew(tmp_path):
    assert job(tmp_path, resume_from_checkpoint="latest")[0].steps == 4


def test_a_new_run_does_not_mix_with_an_old_ones_checkpoints(tmp_path):
    job(tmp_path)
    with pytest.raises(
        InputError, match=r"contains an earlier run \(checkpoint-1, .* latest, replace it with --overwrite"
    ):
        job(tmp_path)


def test_a_finished_run_without_its_checkpoints_is_not_begun_anew(tmp_path):
    (tmp_path / "adapter").mkdir()
    with pytest.raises(InputError, match="but no checkpoint to continue it from: replace it with --overwrite"):
        job(tmp_path, resume_from_checkpoint="latest")


def test_an_option_that_a_checkpoint_is_too_old_to_know_has_its_default(tmp_path):
    job(tmp_path, max_train_steps=1)
    file = tmp_path / "checkpoint-1" / "state.json"
    state = json.loads(file.read_text())
    for name in ("task", "quantize"):
        del state["settings"][name]
    file.write_text(json.dumps(state))
    assert job(tmp_path, resume_from_checkpoint="latest")[0].steps == 4


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(InputError, match="no such folder; the latest is none"):
        job(tmp_path, resume_from_checkpoint="checkpoint-7")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1, "method": "onelora"}, "method was 'lora', is 'onelora'; seed was 0, is 1"),
        ({"learning_rate": 0.5}, "learning_rate was 0.001, is 0.5"),
        ({"num_samples": 11}, "num_samples was 10, is 11; number of training samples was 10, is 11"),
        ({"train_batch_size": 8}, "samples per step was 4, is 8"),
        ({"use_ema": True}, "use_ema was False, is True"),
    ],
)
def test_other_settings_are_refused_with_a_diff(tmp_path, change, message):
    job(tmp_path, max_train_steps=1)
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(InputError) as error:
        job(tmp_path, **change, resume_from_checkpoint="latest")
    assert str(error.value).endswith(f"with other settings: {message}")
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_settings_that_do_not_change_the_result_may_change(tmp_path):
    job(tmp_path, max_train_steps=1)
    change = {"train_batch_size": 2, "gradient_accumulation_steps": 2, "dataloader_num_workers": 1}
    assert job(tmp_path, **change, resume_from_checkpoint="latest")[0].steps == 4


@pytest.mark.parametrize("file", ["trained.safetensors", "training_state.pt"])
def test_a_damaged_checkpoint_is_named(tmp_path, file):
    job(tmp_path, max_train_steps=1)
    path = tmp_path / "checkpoint-1" / file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="checkpoint-1 is damaged"):
        job(tmp_path, resume_from_checkpoint="latest")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    job(tmp_path, max_train_steps=1)
    file = tmp_path / "checkpoint-1" / "trained.safetensors"
    tensors = ckpt.safetensors.torch.load_file(file)
    name = min(tensors)
    tensors[name] = torch.zeros(2)
    ckpt.safetensors.torch.save_file(tensors, file)
    with pytest.raises(InputError, match=rf"does not fit this model: {name} was \(2,\), is \("):
        job(tmp_path, resume_from_checkpoint="latest")


def test_a_folder_is_for_one_process_at_a_time_and_leftovers_are_cleared(tmp_path):
    def try_to_lock(folder, answers):
        RunFolder._locks.clear()
        try:
            RunFolder(folder).take()
            answers.put("locked")
        except InputError as error:
            answers.put(str(error))

    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()

    def other_process(folder):
        process = fork.Process(target=try_to_lock, args=(folder, answers))
        process.start()
        answer = answers.get()
        process.join()
        return answer

    (tmp_path / f"{TEMPORARY_PREFIX}x").mkdir()
    (tmp_path / f"{TEMPORARY_PREFIX}y").write_text("")
    RunFolder(tmp_path).take()
    RunFolder(tmp_path).take()
    assert os.listdir(tmp_path) == [LOCK]
    assert checkpoints(tmp_path) == []
    assert "in use by another run" in other_process(tmp_path)
    RunFolder._locks.pop(tmp_path.resolve()).close()
    assert other_process(tmp_path) == "locked"


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--output_dir .*file/out cannot be written"):
        RunFolder(tmp_path / "file" / "out").take()


def test_a_run_killed_before_the_oldest_was_deleted_deletes_it_when_resumed(tmp_path, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ckpt, "rotate", die)
        job(tmp_path, max_train_steps=2, checkpoints_total_limit=1, checkpointing_steps=2)
    (tmp_path / "checkpoint-1").mkdir()
    for file in (tmp_path / "checkpoint-2").iterdir():
        (tmp_path / "checkpoint-1" / file.name).write_bytes(file.read_bytes())
    job(tmp_path, max_train_steps=2, checkpoints_total_limit=1, resume_from_checkpoint="latest")
    assert checkpoints(tmp_path) == ["checkpoint-2"]
