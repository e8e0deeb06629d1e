"""Each kind of file under a limit of size, which is to a writer what a full disk is."""

import contextlib
import resource

import numpy as np
import pytest
import torch
from jobs import write_images
from PIL import Image
from tiny_hosts import make_adapter

from onelora_vision.backbones import dit_original
from onelora_vision.data.classes.formats import open_class_images
from onelora_vision.data.image_sets import write_npz
from onelora_vision.data.latents import LatentStore
from onelora_vision.errors import WriteError
from onelora_vision.metrics.accuracy import draw_confusion_matrix
from onelora_vision.metrics.calibration import CalibrationBins, draw_reliability_diagram
from onelora_vision.plots import pictures
from onelora_vision.plots.depth import ComparedDepth, save_depth_comparison, save_depth_png
from onelora_vision.plots.predictions import Answer, Judged, save_predictions
from onelora_vision.runtime.command import exits_cleanly
from onelora_vision.storage.files import atomic_directory, write_json
from onelora_vision.training.config import TrainingConfig, save_config
from onelora_vision.training.report import plot_loss


@contextlib.contextmanager
def full_disk(size: int = 100):
    """No file of this process grows beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write_latents(path):
    LatentStore(path.parent).write(np.zeros((1, 32), np.uint8), torch.zeros(1, 2, 4, 8, 8), torch.ones(1, 2, 4, 8, 8))


def compared():
    plane = torch.ones(8, 8)
    return ComparedDepth(torch.rand(3, 8, 8), plane, plane > 0, plane, plane)


def judged():
    answer = Answer("a", True, 0.5)
    return Judged(Image.new("RGB", (8, 8)), "a", answer, answer)


WRITERS = {
    "results.json": lambda path: write_json(path, list(range(100))),
    "config.yaml": lambda path: save_config(TrainingConfig(), path),
    "loss.png": lambda path: plot_loss(path, {"loss": [1.0, 0.5]}),
    "confusion.png": lambda path: draw_confusion_matrix({"a": torch.eye(2)}, ["x", "y"], path),
    "reliability.png": lambda path: draw_reliability_diagram(
        {"a": CalibrationBins.of(torch.rand(9), torch.rand(9) > 0.5)}, path
    ),
    "predictions.png": lambda path: save_predictions(path, [judged()]),
    "samples.png": lambda path: pictures.save_comparison(path, {"a": torch.rand(2, 2, 3, 8, 8)}, ["x", "y"]),
    "depth.png": lambda path: save_depth_png(path, np.random.default_rng(0).uniform(1, 9, (32, 32))),
    "pictures.png": lambda path: save_depth_comparison(path, [compared()], 9.0),
    "images.npz": lambda path: write_npz(path, np.zeros((2, 9, 9, 3), np.uint8), np.zeros(2)),
    "latents": write_latents,
    "dit.pt": lambda path: dit_original.save_original({"x": torch.rand(999)}, path, overwrite=True),
    "dit.safetensors": lambda path: dit_original.save_original({"x": torch.rand(999)}, path, overwrite=True),
    "adapter": lambda path: make_adapter(path),
    "adapter.safetensors": lambda path: make_adapter(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_that_does_not_fit_is_named_and_what_stood_there_stands(tmp_path, name):
    path = tmp_path / name
    if name in ("adapter", "adapter.safetensors", "dit.pt", "dit.safetensors"):
        WRITERS[name](path)  # only an output of ours is replaced
    else:
        path.write_text("before")
    before = contents(tmp_path)
    with pytest.raises(WriteError, match=rf"could not write {tmp_path}/{name}.*: ") as caught, full_disk():
        WRITERS[name](path)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_a_command_ends_in_one_line_and_exit_code_1(tmp_path, capsys):
    @exits_cleanly
    def command():
        write_json(tmp_path / "results.json", list(range(100)))

    with pytest.raises(SystemExit) as ended, full_disk():
        command()
    assert ended.value.code == 1
    assert capsys.readouterr().err == f"error: could not write {tmp_path}/results.json: File too large\n"


def test_of_nested_folders_the_one_that_the_user_knows_is_named(tmp_path):
    with (
        pytest.raises(WriteError, match=rf"could not write {tmp_path}/best: File too large"),
        full_disk(),
        atomic_directory(tmp_path / "best") as folder,
        atomic_directory(folder / "inner") as inner,
    ):
        (inner / "file").write_bytes(bytes(999))


def test_a_data_set_is_told_by_its_files_wherever_it_lies(tmp_path):
    first, moved, other = (tmp_path / name for name in ("first", "moved", "other"))
    identities = [open_class_images("imagefolder", write_images(place)).identity() for place in (first, moved, other)]
    assert len(set(identities)) == 1
    (other / "train" / "a" / "0.png").rename(other / "train" / "a" / "9.png")
    assert open_class_images("imagefolder", other).identity() != identities[0]
    (moved / "train" / "a" / "0.png").rename(moved / "train" / "b" / "0a.png")
    Image.new("RGB", (4, 4)).save(moved / "train" / "a" / "0a.png")
    assert open_class_images("imagefolder", moved).identity() != identities[0]
