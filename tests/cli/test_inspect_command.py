import pytest
from tiny_hosts import make_adapter


def test_says_what_the_file_holds(onelora, tmp_path):
    adapter = make_adapter(tmp_path / "a", "timm", "sum+scale")
    code, result, _ = onelora("inspect", tmp_path / "a", "--json", "--plot", tmp_path / "norms.png")
    assert code == 0 and (tmp_path / "norms.png").stat().st_size > 1000
    assert (result["method"], result["layers"], result["classes"]) == ("sum+scale", 8, ["a", "b", "c"])
    assert result["values"] == result["layer_values"] + result["whole_values"]
    row = next(row for row in result["rows"] if row["part"] == "onelora_gamma")
    vector = adapter.tensors[f"base_model.model.{row['layer']}.onelora_gamma"]
    assert row["norm"] == pytest.approx((vector - 1).norm().item(), rel=1e-5)
    code, text, _ = onelora("inspect", tmp_path / "a")
    assert code == 0 and "blocks.1.mlp.fc2.onelora_b" in text and "a, b, c" in text


def test_needs_no_folder_and_refuses_what_is_no_adapter(onelora, tmp_path):
    make_adapter(tmp_path / "a")
    code, result, _ = onelora("inspect", tmp_path / "a" / "adapter_model.safetensors", "--json")
    assert code == 0 and result["task"] == "classification"
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04junk")
    code, _, err = onelora("inspect", tmp_path / "x.safetensors")
    assert code == 2 and err.startswith("error: ") and "pickle" in err and err.count("\n") == 1


def test_inspect_says_what_b_multiplies(onelora, tmp_path):
    for compression, shown in (
        ("sum", None),
        ("singular", "compress singular"),
        ("random", "compress random-0"),
        ("subspace", "compress subspace-16"),
    ):
        make_adapter(tmp_path / compression, compression=compression)
        code, text, _ = onelora("inspect", tmp_path / compression)
        assert code == 0 and (shown in text if shown else "compress" not in text)
        code, result, _ = onelora("inspect", tmp_path / compression, "--json")
        assert result["compression"] == {"random": "random-0", "subspace": "subspace-16"}.get(compression, compression)
    make_adapter(tmp_path / "lora", method="lora")
    assert onelora("inspect", tmp_path / "lora", "--json")[1]["compression"] is None
