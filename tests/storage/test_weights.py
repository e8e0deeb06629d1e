"""Weight files of other programs: tensors by name, or one line that says why not."""

import argparse
import io
import json
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from onelora_vision.errors import InputError
from onelora_vision.storage.safetensors_file import parse_json
from onelora_vision.storage.weights import read_weights

GOOD = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "kind", ["pt", "old.pt", "training.bin", "old training.pth", "safetensors", "ordered.pt", "tied.pt"]
)
def test_checkpoints_of_every_age_and_precision(tmp_path, kind, dtype):
    state = {key: value.to(dtype) for key, value in GOOD.items()}
    path = tmp_path / kind
    if kind == "safetensors":
        path = tmp_path / "x.safetensors"
        save_file(state, path)
    elif kind == "ordered.pt":
        torch.save(nn.Linear(3, 2).to(dtype).state_dict(), path)
        state = torch.load(path)
    elif kind == "tied.pt":
        state |= {f"copy{k}": state["a.weight"] for k in range(3)} | {
            "steps": torch.tensor(3),
            "mask": torch.ones(2) > 0,
        }
        torch.save(state, path)
    else:
        whole = {"ema": state, "model": {"x": 1}, "args": argparse.Namespace(lr=1)} if "training" in kind else state
        torch.save(whole, path, _use_new_zipfile_serialization="old" not in kind)
    found = read_weights(path, inside=("ema", "model"))
    assert found.keys() == state.keys() and all(torch.equal(found[key], value) for key, value in state.items())
    assert all(value.dtype == state[key].dtype for key, value in found.items())


def compressed(path):
    torch.save({"a": torch.zeros(100_000)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, data in entries:
            archive.writestr(info.filename, data)


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ema": [1]}, "no tensors by name .a list instead"),
        ({"ema": {}}, "no tensors by name .none at all"),
        ([torch.ones(2)], "no tensors by name .a list instead"),
        (torch.ones(2), "no tensors by name .a Tensor instead"),
        ({0: torch.ones(2)}, "a key is 0"),
        ({"ema": {"a": torch.ones(2), 3: torch.ones(2)}}, "a key is 3"),
        ({"a": 1.0}, "'a' is a float, not a tensor"),
        ({"a": torch.ones(1).expand(10**11)}, r"'a' is larger .100000000000. than its data in the file"),
        ({"a": torch.ones(1, 2).expand(10**5, 2)}, "'a' is larger .100000x2."),
        ({f"a{k}": torch.ones(9999).as_strided((99, 99), (0, 1)) for k in range(2)} | {"b": torch.ones(1)}, None),
        ({"ema": GOOD | {"b": torch.tensor([1.0, float("nan")])}}, "b holds 1 of 2 values that are NaN or infinite"),
        ({"b": torch.tensor([1.0, float("inf")]).half()}, "b holds 1 of 2 values"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, "'a' is float8_e4m3fn; readable are float16|cannot be read"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a' is complex64"),
        ({"a": torch.eye(3).to_sparse()}, "not a dense tensor of numbers"),
        ({"a": torch.ones(3, device="meta")}, "not a dense tensor of numbers"),
        ({"a": torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)}, "not a dense tensor|cannot be read"),
        ({"a": Bomb()}, "holds more than tensors, which could run code"),
        ({"a": print}, "holds more than tensors, which could run code"),
        ({"x\n\x1b[31m" * 10**5: 1}, "is a int, not a tensor"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_state_dict_is_refused_in_one_line(tmp_path, content, message):
    for is_new in (True, False):
        path = tmp_path / f"{is_new}.pt"
        torch.save(content, path, _use_new_zipfile_serialization=is_new)
        if message is None:
            assert read_weights(path)
            continue
        with pytest.raises(InputError, match=message) as caught:
            read_weights(path, inside=("ema",))
        line = str(caught.value)
        assert line.isprintable() and len(line) < 500 and str(path) in line


def test_many_views_of_one_storage_are_not_multiplied(tmp_path):
    whole = torch.ones(1000)
    torch.save({f"a{k}": whole for k in range(1000)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match="its tensors ask for 4,000,000 bytes, the file has"):
        read_weights(tmp_path / "x.pt")


def test_compressed_damaged_and_foreign_files(tmp_path):
    compressed(tmp_path / "small.pt")
    with pytest.raises(InputError, match="its entries are compressed"):
        read_weights(tmp_path / "small.pt")
    torch.save(GOOD, tmp_path / "good.pt")
    good = (tmp_path / "good.pt").read_bytes()
    old = io.BytesIO()
    torch.save(GOOD, old, _use_new_zipfile_serialization=False)
    for name, data in {
        "empty.pt": b"",
        "cut.pt": good[:400],
        "cut old.pt": old.getvalue()[:-9],
        "text.pt": b"hello",
        "page.safetensors": b"<!DOCTYPE html>",
        "pickle.bin": pickle.dumps({"a": 1}),
        "deep.safetensors": struct.pack("<Q", 200_000) + b"[" * 200_000,
    }.items():
        (tmp_path / name).write_bytes(data)
    for name in (
        "empty.pt",
        "cut.pt",
        "cut old.pt",
        "text.pt",
        "page.safetensors",
        "pickle.bin",
        "gone.pt",
        "deep.safetensors",
        "",
    ):
        with pytest.raises(InputError) as caught:
            read_weights(tmp_path / name)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]


def test_every_flipped_byte_gives_tensors_or_one_line(tmp_path):
    for is_new in (True, False):
        torch.save({"a": torch.ones(2)}, tmp_path / "x.pt", _use_new_zipfile_serialization=is_new)
        data = (tmp_path / "x.pt").read_bytes()
        for at in range(0, len(data), max(1, len(data) // 150)):
            (tmp_path / "y.pt").write_bytes(flipped(data, at))
            try:
                assert read_weights(tmp_path / "y.pt")
            except InputError as error:
                assert str(error).isprintable() and len(str(error)) < 500


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4", "F8_E8M0", "BOOL", "I64", "U16", "C64", "X"])
def test_unusual_types_of_safetensors(tmp_path, dtype):
    header = json.dumps(
        {
            "a.b": {
                "dtype": dtype,
                "shape": [8],
                "data_offsets": [0, {"F4": 4, "I64": 64, "U16": 16, "C64": 64}.get(dtype, 8)],
            }
        }
    )
    size = json.loads(header)["a.b"]["data_offsets"][1]
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(size))
    if dtype in ("BOOL", "I64"):
        assert len(read_weights(tmp_path / "x.safetensors")["a.b"]) == 8
        return
    with pytest.raises(
        InputError, match=r"readable are float16|not a whole safetensors file|not a dense tensor"
    ) as caught:
        read_weights(tmp_path / "x.safetensors")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 70 + "]" * 70, "nested too deeply"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' appears twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": -Infinity}', "-Infinity is not a JSON number"),
        ("1" * 5000, "too large a number"),
        ('{"a": 1e999}', "too large a number"),
        ("{", "."),
    ],
)
def test_json_from_outside(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text)
