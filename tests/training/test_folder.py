"""Which files in an output folder are the run's own."""

import pytest

from onelora_vision.errors import InputError
from onelora_vision.storage.files import TEMPORARY_PREFIX
from onelora_vision.training.folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    yield RunFolder(tmp_path)
    for handle in RunFolder._locks.values():
        handle.close()
    RunFolder._locks.clear()


@pytest.mark.parametrize("place", ["evaluations", "validation", "."])
def test_what_a_killed_run_left_half_written_is_ours_and_cleared(folder, place):
    leftover = folder.path / place / f"{TEMPORARY_PREFIX}abc.safetensors"
    leftover.parent.mkdir(exist_ok=True)
    leftover.write_bytes(b"half")
    folder.require_free(resumes=True, overwrite=False)
    folder.take()
    assert not leftover.exists()


def test_an_empty_folder_of_a_runs_name_holds_nothing_to_lose(folder):
    (folder.path / "evaluations").mkdir()
    folder.require_free(resumes=True, overwrite=False)


@pytest.mark.parametrize(
    "name", ["evaluations/before.safetensors", "results.json", "report.html", "predictions.png", "adapter/notes.txt"]
)
def test_files_of_others_that_a_run_would_write_are_refused(folder, name):
    file = folder.path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    for resumes, overwrite in ((True, False), (False, True), (False, False)):
        with pytest.raises(InputError, match="did not write"):
            folder.require_free(resumes, overwrite)
    assert file.read_text() == "mine"


def test_files_that_no_run_writes_may_lie_there(folder):
    (folder.path / "slurm.log").write_text("mine")
    folder.require_free(resumes=False, overwrite=False)
