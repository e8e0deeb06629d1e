"""Every method of the table on a language model: trained, saved, loaded, used to write, merged."""

import copy

import pytest
import torch
from tiny_hosts import close, shake
from tiny_language import byte_tokenizer, save_llama, tiny_llama

from onelora_vision.adapters.export import export
from onelora_vision.adapters.file import read_adapter, save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.language import LanguageBase
from onelora_vision.data.stream import collate
from onelora_vision.data.text.dataset import TextDataset
from onelora_vision.data.text.rows import Row
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method, trainable_parameters
from onelora_vision.methods.names import METHODS
from onelora_vision.methods.peft_methods import PEFT_METHODS
from onelora_vision.tasks.language import LanguageTask

OFF_BASE = {row.name for row in PEFT_METHODS if row.off_base}
#: Layers without bias leave BEFT's nowhere to go; Lily's router depends on the input.
CANNOT_MERGE = {"beft", "lily"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tiny():
    return LanguageBase(model=tiny_llama(), tokenizer=byte_tokenizer())


@pytest.fixture(scope="module")
def batch(tiny):
    rows = [Row("1 + 1?", "2"), Row("2 + 3?", "The answer is: 5")]
    return collate(TextDataset.of(rows, tiny.tokenizer, "{query}", 64).__getitems__([0, 1]))


def logits(model, batch):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize("method", [name for name in METHODS if name != "head"])
def test_trains_saves_loads_writes_and_merges(tiny, batch, method, tmp_path):
    base, before = copy.deepcopy(tiny), logits(tiny.model, batch)
    model = apply_method(base.model, method, base.adaptation())
    if method not in OFF_BASE:
        close(logits(model.eval(), batch), before)
    LanguageTask(model.train(), base).forward(batch)["loss"].backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in trained)
    expected = logits(shake(model.eval(), size=0.02), batch)
    assert not torch.allclose(expected, before, rtol=1e-4, atol=1e-5)
    save_adapter(model, tmp_path / "adapter", AdapterInfo("language", method, "tiny"))
    other = copy.deepcopy(tiny)
    loaded = read_adapter(tmp_path / "adapter").attach(other.model).eval()
    close(logits(loaded, batch), expected, 1e-6)
    assert trainable_parameters(loaded) == 0
    assert other.complete(["1 + 1?"], model=loaded, max_new_tokens=3) == base.complete(["1 + 1?"], max_new_tokens=3)
    if method not in CANNOT_MERGE:
        close(logits(loaded.merge_and_unload(), batch), expected, 1e-3)


def test_head_trains_nothing_here(tiny):
    with pytest.raises(InputError, match="method head trains nothing on this model: it has no such modules"):
        apply_method(copy.deepcopy(tiny).model, "head", tiny.adaptation())


@pytest.mark.parametrize(("method", "count"), [("lora", 2 * 3 * (16 + 16)), ("mora1", 6 * 16), ("mora6", 6 * 16)])
def test_q_k_and_v_alone(tiny, method, count):
    base = copy.deepcopy(tiny)
    model = apply_method(base.model, method, base.adaptation(), target_modules="[qkv]_proj")
    assert trainable_parameters(model) == count


@pytest.mark.parametrize(
    ("method", "reason"), [("beft", "has no bias"), ("lily", "not supported"), ("bitfit", "no bias")]
)
def test_what_cannot_be_merged_is_one_line(folder, method, reason, tmp_path):
    base = LanguageBase.load(folder)
    info = AdapterInfo("language", method, str(folder), base_fingerprint=base.fingerprint())
    save_adapter(apply_method(base.model, method, base.adaptation()), tmp_path / "adapter", info)
    with pytest.raises(InputError, match=reason) as caught:
        export(tmp_path / "adapter", "merged", tmp_path / "merged")
    assert "\n" not in str(caught.value) and not (tmp_path / "merged").exists()
