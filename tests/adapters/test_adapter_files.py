import json

import peft
import pytest
import torch
from safetensors import safe_open
from torch import nn

from onelora_vision.adapters.file import read_adapter, save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import Adaptation, fingerprint
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method

INFO = AdapterInfo(
    task="classification",
    method="onelora",
    base="some/base",
    base_fingerprint="abc",
    class_names=["cat", "dög"],
    metrics={"before": {"top1": 10.0}, "after": {"top1": 95.5}},
    protocol="test split",
    extra={"fuse_qkv": True},
)


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu())


def adapted(method="onelora", width=8):
    model = apply_method(Net(width), method, Adaptation(["first", "second"], [], ["head"]))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    return save_adapter(adapted(), tmp_path / "adapter", INFO)


@pytest.mark.parametrize("method", ["onelora", "difffit", "lora", "dora", "vera", "mora6", "head", "full"])
@torch.no_grad()
def test_every_method_comes_back_from_its_folder(method, tmp_path):
    model, x = adapted(method), torch.randn(3, 4)
    save_adapter(model, tmp_path / "adapter", INFO)
    again = read_adapter(tmp_path / "adapter").attach(Net()).eval()
    assert torch.equal(again(x), model(x))


@torch.no_grad()
def test_peft_loads_the_folder_itself(folder):
    x = torch.randn(3, 4)
    assert torch.equal(peft.PeftModel.from_pretrained(Net(), folder).eval()(x), adapted()(x))


@torch.no_grad()
def test_the_single_file_is_a_complete_adapter(folder, tmp_path):
    alone = tmp_path / "shared.safetensors"
    alone.write_bytes((folder / "adapter_model.safetensors").read_bytes())
    adapter = read_adapter(alone)
    assert adapter.info.class_names == ["cat", "dög"] and adapter.info.extra == {"fuse_qkv": True}
    x = torch.randn(3, 4)
    assert torch.equal(adapter.attach(Net()).eval()(x), adapted()(x))


def test_the_header_and_the_card_say_what_it_is(folder):
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        header = file.metadata()
    assert header["format"] == "pt" and json.loads(header["onelora.base"]) == "some/base"
    assert json.loads(header["onelora.config"]) == json.loads((folder / "adapter_config.json").read_text())
    card = (folder / "README.md").read_text()
    for text in (
        "from onelora_vision import load_adapted",
        "| top1 | 10 | 95.5 |",
        "dög",
        "base_model: some/base",
        "test split",
    ):
        assert text in card


def test_the_bytes_depend_on_the_content_alone(folder, tmp_path):
    again = save_adapter(adapted(), tmp_path / "again", INFO)
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()
    data = (folder / "adapter_model.safetensors").read_bytes()
    assert data[8 : 8 + int.from_bytes(data[:8], "little")].startswith(
        b'{"__metadata__": {"format": "pt", "onelora.base"'
    )


def test_a_second_adapter_joins_the_first(folder):
    model = read_adapter(folder).attach(Net(), "left")
    model = read_adapter(folder).attach(model, "right")
    assert set(model.peft_config) == {"left", "right"}


def test_a_mismatch_is_an_error_that_lists_it(folder):
    with pytest.raises(InputError, match=r"does not match this base.*of another shape.*first"):
        read_adapter(folder).attach(Net(width=6))
    adapter = read_adapter(folder)
    key = next(key for key in adapter.tensors if "second" in key)
    adapter.tensors["base_model.model.third.onelora_b"] = adapter.tensors.pop(key)
    with pytest.raises(InputError, match=r"missing: .*second.*unexpected: .*third"):
        adapter.attach(Net())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"\x80\x04pickle"), "not a whole safetensors file"),
        (lambda d: (d / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
        (lambda d: (d / "adapter_config.json").write_text("{"), "is not JSON"),
        (lambda d: (d / "adapter_config.json").write_text('{"peft_type": "EVIL"}'), "peft_type 'EVIL'"),
        (lambda d: (d / "adapter_config.json").write_text("[1]"), "peft_type None"),
    ],
)
def test_damaged_folders_are_refused_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as caught:
        read_adapter(folder)
    assert "\n" not in str(caught.value)


def test_fingerprint_tells_bases_apart_and_survives_bf16():
    base = Net()
    assert fingerprint(base) == fingerprint(Net().bfloat16())
    assert fingerprint(base) != fingerprint(Net(width=6))
    with torch.no_grad():
        base.head.weight.add_(1)
    assert fingerprint(base) != fingerprint(Net())
    assert fingerprint(base, exclude=["head"]) == fingerprint(Net(), exclude=["head"])
