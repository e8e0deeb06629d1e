import pytest
import torch
from tiny_hosts import save_base, trained_on

from onelora_vision.adapters.file import read_adapter


def test_there_and_back(onelora, tmp_path):
    base = save_base("timm", tmp_path / "base")
    adapter = trained_on(base, "timm", tmp_path / "a", "onelora_norms")
    code, result, err = onelora("export", tmp_path / "a", "--to", "peft-lora", "-o", tmp_path / "lora", "--json")
    assert code == 0 and result["error"] < 1e-5 < result["effect"] and "head" in result["carried"], err
    code, _, err = onelora("import", tmp_path / "lora", "-o", tmp_path / "again")
    assert code == 0, err
    for key, tensor in read_adapter(tmp_path / "again").tensors.items():
        torch.testing.assert_close(tensor, adapter.tensors[key])


def test_bad_input_is_one_line(onelora, tmp_path):
    for arguments, message in (
        (["export", "none", "--to", "merged", "-o", "x"], "no such file or folder"),
        (["export", "none", "--to", "mergd", "-o", "x"], "did you mean 'merged'"),
        (["import", tmp_path, "-o", "x"], "0 LoRA files"),
    ):
        code, _, err = onelora(*arguments)
        assert code == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize("size", ["foo", "5", "0GB", "-1GB"])
def test_a_size_that_is_none_is_refused_before_any_work(onelora, tmp_path, size):
    code, _, error = onelora("export", tmp_path, "--to", "merged", "-o", tmp_path / "out", f"--max_shard_size={size}")
    assert code == 2 and f"--max_shard_size is {size!r}, but must be a size such as 500MB or 5GB" in error
