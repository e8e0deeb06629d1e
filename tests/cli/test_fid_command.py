import json

import numpy as np
import pytest
from PIL import Image

from onelora_vision.data.image_sets import write_npz
from onelora_vision.metrics.generative import Protocol

PROTOCOL = Protocol(
    10, 9, "set/test", "none", "none", "ddim", 50, 1.5, "all", "0,1", "fp32", "ab", 0, True, "inception", "cd"
)


@pytest.fixture
def sets(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name, low in (("real", 0), ("made", 90)):
        write_npz(tmp_path / f"{name}.npz", rng.integers(low, 255, (12, 32, 32, 3), dtype=np.uint8), np.zeros(12))
    return tmp_path


def test_two_sets_are_measured(onelora, sets):
    arguments = ("--features", "embedded", "--device", "cpu", "--batch_size", 5)
    code, result, _ = onelora("fid", sets / "real.npz", sets / "made.npz", *arguments, "--json")
    assert code == 0 and (result["reference_images"], result["generated_images"]) == (12, 12)
    assert result["metrics"]["fd_embedded"] > 0.01 and "coverage_embedded" in result["metrics"]
    (kept,) = (sets / "cache" / "onelora_vision" / "references").iterdir()
    code, text, _ = onelora("fid", sets / "real.npz", sets / "real.npz", *arguments)
    assert (code == 0 and f"{0:>14.6g}" in text.split("fd_embedded")[1].splitlines()[0]) or "e-" in text
    kept.write_bytes(b"damaged")
    code, again, _ = onelora("fid", sets / "real.npz", sets / "made.npz", *arguments, "--json")
    assert code == 0 and again["metrics"] == result["metrics"]


def test_images_of_a_file_with_statistics_are_measured_by_other_features(onelora, sets):
    with np.load(sets / "real.npz") as archive:
        images = dict(archive)
    np.savez(sets / "both.npz", mu=np.zeros(2048), sigma=np.eye(2048), **images)
    np.savez(sets / "alone.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    arguments = (sets / "made.npz", "--features", "embedded", "--device", "cpu", "--json")
    code, result, _ = onelora("fid", sets / "both.npz", *arguments)
    assert code == 0 and result["reference_images"] == 12
    assert result["metrics"] == onelora("fid", sets / "real.npz", *arguments)[1]["metrics"]
    code, _, error = onelora("fid", sets / "alone.npz", *arguments)
    assert code == 2 and "statistics of InceptionV3's features alone" in error


def test_a_home_folder_that_cannot_be_written_costs_no_metrics(onelora, sets, monkeypatch, caplog):
    (sets / "nohome").touch()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(sets / "nohome"))
    arguments = ("--features", "embedded", "--device", "cpu", "--json")
    code, result, _ = onelora("fid", sets / "real.npz", sets / "made.npz", *arguments)
    assert code == 0 and result["metrics"]["fd_embedded"] > 0.01
    assert len(caplog.messages) == 1 and "the cache is not used: could not write" in caplog.messages[0]


def test_runs_are_compared_only_under_one_protocol(onelora, tmp_path):
    import dataclasses

    def write(name, protocol, value):
        (tmp_path / name).mkdir()
        results = {"method": name, "protocol": protocol, "metrics": {"after": {"fd_inception": value, "x": None}}}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
        return tmp_path / name

    first = write("onelora", PROTOCOL.line(), 12.5)
    second = write("lora", dataclasses.replace(PROTOCOL, seed=1).line(), 13.25)
    code, result, _ = onelora("fid", "compare", first, second / "results.json", "--json")
    assert code == 0 and result["metrics"] == {"fd_inception": [12.5, 13.25], "x": [None, None]}
    code, text, _ = onelora("fid", "compare", first, second)
    assert code == 0 and "13.25" in text and "sampler=ddim" in text
    other = write("other", dataclasses.replace(PROTOCOL, steps=250, guidance=4.0).line(), 1)
    code, _, error = onelora("fid", "compare", first, other)
    assert code == 2 and "steps 50 and 250; guidance 1.5 and 4.0" in error
    code, _, error = onelora("fid", "compare", first, write("none", "not measured", 1))
    assert code == 2 and "not a protocol" in error


@pytest.mark.parametrize("broken", ["reference", "generated"])
def test_unreadable_images_are_an_error_or_left_out(onelora, sets, caplog, broken):
    rng = np.random.default_rng(0)
    for name in ("reference", "generated"):
        (sets / name).mkdir()
        for number in range(8):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(sets / name / f"{number}.png")
    common = ("fid", sets / "reference", sets / "generated", "--features", "embedded", "--device", "cpu", "--json")
    _, whole, _ = onelora(*common)
    (sets / broken / "9.png").write_bytes(b"broken")
    code, _, error = onelora(*common)
    assert code == 2 and "9.png" in error and "--on_bad_image skip" in error
    code, result, _ = onelora(*common, "--on_bad_image", "skip")
    assert code == 0 and result == whole
    assert "9.png" in caplog.messages[0] and caplog.messages[1].startswith("1 of 9 images were skipped")
    assert onelora(*common)[0] == 2  # what was measured without an image is not taken for the whole


def test_an_interrupted_run_is_not_compared(onelora, tmp_path):
    for phase, after in (("trained", {}), ("complete", {})):
        results = {"phase": phase, "method": "onelora", "protocol": PROTOCOL.line(), "metrics": {"after": after}}
        (tmp_path / "results.json").write_text(json.dumps(results))
        code, _, error = onelora("fid", "compare", tmp_path, tmp_path)
        assert code == 2 and "this run was interrupted" in error and len(error.splitlines()) == 1


def test_bad_input_is_one_line(onelora, sets):
    for arguments, message in {
        (sets / "real.npz",): "two sets of images",
        (sets / "real.npz", sets / "gone"): "no such file or folder",
        (sets / "real.npz", sets / "made.npz", "--features", "inceptio"): "did you mean 'inception'",
        (sets / "real.npz", sets / "made.npz", "--fid_weights", sets / "gone.pth"): "gone.pth: no InceptionV3 weights",
        ("compare", sets / "a", sets / "b"): "not the results.json",
    }.items():
        code, _, error = onelora("fid", *arguments)
        assert code == 2 and message in error and error.count("error:") == 1
