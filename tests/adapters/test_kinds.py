"""Each row of the table against the PEFT config and layers that it describes."""

import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from tiny_hosts import fresh, make_adapter

from onelora_vision.adapters.algebra import blend
from onelora_vision.adapters.kinds import KINDS, kind_of
from onelora_vision.adapters.layout import layout_of
from onelora_vision.adapters.lowrank import low_rank
from onelora_vision.methods.apply import apply_method

METHODS = {
    "ONELORA": ["onelora", "sum+bias+scale", "bitfit"],
    "MORA": ["mora1", "mora6"],
    "LORA": ["lora", "dora"],
    "VERA": ["vera"],
}
CASES = [(kind, method) for kind, methods in METHODS.items() for method in methods]


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_row_names_fields_of_its_config(kind):
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind.name]
    known = {f.name for f in fields(config_class)}
    options = {part.option for part in kind.parts.values() if part.option}
    rank = {kind.rank[0]} if kind.rank else set()
    assert kind.free_fields | kind.choices.keys() | options | rank <= known
    assert all(name in known or hasattr(config_class, name) for name in kind.settings)
    assert not kind.rank or kind.rank[1] in kind.parts
    assert all(name.startswith(kind.marker[1:]) for name in kind.parts)
    assert kind.is_ours == config_class.__module__.startswith("onelora_vision")


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_the_functions_of_a_row_exist(kind):
    for function in (kind.sum, kind.low_rank):
        if function is not None:
            with pytest.raises(TypeError, match="positional argument"):
                function()


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_row_describes_what_peft_saves_and_where_it_starts(name, method, tmp_path):
    adapter = make_adapter(tmp_path, "timm", method, size=0.0, whole=False)
    kind, layout = kind_of(adapter.config), layout_of(adapter.config, adapter.tensors)
    assert kind.name == name
    for parts in layout.layers.values():
        assert set(parts) == kind.expected_parts(adapter.config)
        for part, tensor in parts.items():
            assert tensor.ndim in kind.parts[part].dimensions
            is_neutral = bool((tensor == kind.neutral(part)).all())
            assert is_neutral == (kind.parts[part].neutral is not None), part


@pytest.mark.parametrize(("name", "method"), CASES)
def test_what_a_kind_has_no_function_for_is_refused(name, method, tmp_path):
    adapter = make_adapter(tmp_path, "timm", method, whole=False)
    kind = KINDS[name]
    if kind.sum is None:
        with pytest.raises(ValueError, match=f"a weighted sum of {name} adapters is not a {name} adapter"):
            blend([(adapter, 1.0), (adapter, 1.0)])
    if kind.low_rank is None:
        with pytest.raises(ValueError, match="is not a plain LoRA"):
            low_rank(adapter, layout_of(adapter.config, adapter.tensors), fresh("timm")[0])


def test_the_parts_of_the_1lora_family_are_its_vectors():
    model = apply_method(fresh("timm")[0], "sum+bias+scale", fresh("timm")[1])
    layer = model.base_model.model.blocks[0].mlp.fc1
    for part, field in KINDS["ONELORA"].vectors.items():
        assert torch.equal(getattr(layer.vectors("default"), field), getattr(layer, part)["default"])
    assert not any(kind.vectors for kind in KINDS.values() if kind.name != "ONELORA")


def test_tables_of_kinds_and_formats_need_no_torch():
    code = "import sys\nimport onelora_vision.adapters.kinds, onelora_vision.adapters.formats\n"
    code += "print([name for name in ('torch', 'peft', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
