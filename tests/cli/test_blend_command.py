import pytest
import torch
from tiny_hosts import make_adapter, save_base, trained_on

from onelora_vision.adapters.file import read_adapter


@pytest.fixture
def adapters(tmp_path):
    return [make_adapter(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]


def test_writes_the_weighted_sum(onelora, adapters, tmp_path):
    a, b = adapters
    arguments = [f"{a.path}:0.7", f"{b.path}:-0.3", "--blocks", "0:0.5", "--blocks", "1-9:2"]
    code, result, _ = onelora("blend", *arguments, "-o", tmp_path / "c", "--whole-from", a.path, "--json")
    assert code == 0 and [term["weight"] for term in result["terms"]] == [0.7, -0.3]
    total = read_adapter(tmp_path / "c")
    for key, tensor in total.tensors.items():
        if "onelora_b" in key:
            factor = 0.5 if ".blocks.0." in key else 2
            torch.testing.assert_close(tensor, factor * (0.7 * a.tensors[key] - 0.3 * b.tensors[key]))
        else:
            assert torch.equal(tensor, a.tensors[key])
    assert [item["weight"] for item in total.info.extra["blend"]] == [0.7, -0.3]
    assert "0.7 × a − 0.3 × b" in (tmp_path / "c" / "README.md").read_text()


def test_average_into_a_single_file(onelora, adapters, tmp_path):
    paths = [adapter.path for adapter in adapters]
    code, text, _ = onelora("blend", *paths, "--average", "-o", tmp_path / "c.safetensors")
    assert code == 0 and "0.5" in text
    for key, tensor in read_adapter(tmp_path / "c.safetensors").tensors.items():
        torch.testing.assert_close(2 * tensor, sum(adapter.tensors[key] for adapter in adapters))


def test_norms_take_the_base(onelora, tmp_path):
    base = save_base("timm", tmp_path / "base")
    trained_on(base, "timm", tmp_path / "a", "onelora_norms")
    code, _, err = onelora("blend", f"{tmp_path / 'a'}:2", "-o", tmp_path / "c")
    assert code == 2 and "--base" in err
    code, _, err = onelora("blend", f"{tmp_path / 'a'}:2", "-o", tmp_path / "c", "--base", base)
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}:x", "-o", "c"], "expected ADAPTER:WEIGHT"),
        (["{a}:1", "--average", "-o", "c"], "without weights"),
        (["{a}", "-o", "c", "--blocks", "5-0:1"], "the range is empty"),
        (["{a}", "-o", "c", "--blocks", "x:1"], "such as 0-5:0.2"),
        (["{a}", "-o", "c", "--whole-from", "z"], "is not one of the blended"),
        (["{a}"], "required: -o"),
        (["nothing:1", "-o", "c"], "no such file or folder"),
    ],
)
def test_bad_input_is_one_line(onelora, adapters, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = onelora("blend", *(text.format(a="a", b="b") for text in arguments))
    assert code == 2 and message in err and err.count("\n") == 1 and not (tmp_path / "c").exists()
