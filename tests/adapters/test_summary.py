"""What the file alone says, read without torch, is what torch reads."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_hosts import make_adapter

from onelora_vision.adapters.container import WEIGHTS_FILE
from onelora_vision.adapters.summary import inspect
from onelora_vision.errors import InputError


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_norms_are_torchs_for_every_type(tmp_path, dtype):
    adapter = make_adapter(tmp_path / "a", "timm", "sum+scale")
    file = tmp_path / "a" / WEIGHTS_FILE
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(file).items()}
    save_file(tensors, file, adapter.info.to_header())
    result = inspect(tmp_path / "a")
    assert result["values"] == sum(tensor.numel() for tensor in tensors.values())
    for row in result["rows"] + result["whole"]:
        tensor = tensors[f"base_model.model.{row['layer']}.{row['part']}"].double()
        tensor = tensor - 1 if row["part"] == "onelora_gamma" else tensor
        assert row["dtype"] == str(dtype).removeprefix("torch.") and row["shape"] == list(tensor.shape)
        assert row["norm"] == pytest.approx(tensor.norm().item(), rel=1e-12)
        assert row["largest"] == pytest.approx(tensor.abs().max().item(), rel=1e-12)


def test_a_folder_a_file_and_a_zip_say_the_same_and_pictures_do_not_count(tmp_path):
    make_adapter(tmp_path / "a")
    (tmp_path / "a" / "loss.png").write_bytes(bytes(100_000))
    shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path / "a")
    folder, file, archive = (
        inspect(tmp_path / place) for place in ("a", f"a/{WEIGHTS_FILE}", "b.zip")
    )  # fmt: skip
    assert folder["file_bytes"] == file["file_bytes"] == (tmp_path / "a" / WEIGHTS_FILE).stat().st_size
    different = {"file", "file_bytes"}
    assert {k: v for k, v in folder.items() if k not in different} == {
        k: v for k, v in archive.items() if k not in different
    }


def test_values_that_json_cannot_hold_are_null(tmp_path):
    adapter = make_adapter(tmp_path / "a")
    file = tmp_path / "a" / WEIGHTS_FILE
    tensors = load_file(file)
    key = next(iter(tensors))
    tensors[key][0] = float("nan")
    save_file(tensors, file, adapter.info.to_header())
    row = next(row for row in inspect(tmp_path / "a")["rows"] if key.endswith(f"{row['layer']}.{row['part']}"))
    assert row["norm"] is row["largest"] is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "unsupported peft_type None"),
        ('{"peft_type": "CPT"}', "unsupported peft_type 'CPT' .supported: ONELORA"),
        ('{"peft_type": "ONELORA", "modules_to_save": "head"}', "modules_to_save is not a list of names"),
        ("{", "is not JSON"),
    ],
)
def test_what_is_no_adapter_is_refused(tmp_path, config, message):
    make_adapter(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text(config)
    with pytest.raises(InputError, match=message):
        inspect(tmp_path / "a")


def test_torch_is_not_imported(tmp_path):
    make_adapter(tmp_path / "a")
    code = (
        "import json, sys; from onelora_vision.adapters.summary import inspect; inspect(sys.argv[1]);"
        "print(json.dumps([name for name in ('torch', 'peft', 'safetensors') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
