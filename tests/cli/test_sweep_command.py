import pytest

from onelora_vision.cli.sweep import read_sweep
from onelora_vision.errors import InputError


def sweep(folder, *flags, task="classification"):
    return read_sweep([task, "--methods", "onelora", "--output_dir", str(folder), *flags])


def test_two_spellings_of_a_command_are_one_sweep(tmp_path):
    sweep(tmp_path, "--max_train_steps", "2", "--few-shot=5", "--use_ema").open()
    again = sweep(tmp_path, "--use_ema", "--few_shot", "5", "--max_train_steps=2")
    assert sorted(again.flags) == ["--few_shot=5", "--max_train_steps=2", "--use_ema"]
    sweep(tmp_path, "--use_ema", "--few_shot=5", "--max_train_steps=2", "--metric", "nll").open()


def test_a_plan_for_the_folder_of_another_sweep_is_refused(tmp_path):
    sweep(tmp_path, "--few_shot=5").open()
    with pytest.raises(InputError, match=r"has other flags \(--few_shot=5; now --few_shot=6\)"):
        sweep(tmp_path, "--few_shot=6")
    with pytest.raises(InputError, match=r"has other task \(classification; now depth\)"):
        sweep(tmp_path, task="depth")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metric", "tpo1"], "--metric tpo1: no such metric; did you mean 'top'"),
        (["--more_metrics", "nll,nix"], "--more_metrics nix: no such metric"),
        (["--methods", ""], "--methods is empty"),
        (["--sweep_file", "{folder}/depth.yaml"], "depth.yaml: is for another task than classification"),
        (["--sweep_file", "{folder}/nested.yaml"], "unknown flag.*sweep_file|sweep_file.*did you mean"),
    ],
)
def test_what_makes_no_sense_is_one_line(tmp_path, flags, message):
    (tmp_path / "depth.yaml").write_text("task: depth\n")
    (tmp_path / "nested.yaml").write_text("sweep_file: other.yaml\n")
    with pytest.raises(InputError, match=message) as caught:
        sweep(tmp_path / "out", *(flag.format(folder=tmp_path) for flag in flags))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
