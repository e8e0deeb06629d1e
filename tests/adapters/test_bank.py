from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from tiny_hosts import HOSTS, example, fresh, make_adapter
from torch import nn

from onelora_vision import OneLoraConfig
from onelora_vision.adapters.algebra import blend
from onelora_vision.adapters.bank import AdapterBank
from onelora_vision.adapters.file import Adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import output_of
from onelora_vision.errors import InputError

LORA = {"A": torch.ones(1, 8), "B": torch.ones(8, 1)}


def three_samples(host):
    return {
        key: torch.cat([value, value[:1].flip(-1) if value.ndim > 1 else value[:1]])
        for key, value in example(host).items()
    }


@torch.no_grad()
def separate(host, adapter, inputs, row):
    """Sample ``row`` through a model of its own with that adapter."""
    model = fresh(host)[0]
    model = model if adapter is None else adapter.attach(model)
    return output_of(model.eval(), {key: value[row : row + 1] for key, value in inputs.items()})


@pytest.mark.parametrize("method", ["onelora", "sum+bias+scale"])
@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_each_sample_goes_through_its_own_adapter(host, method, tmp_path):
    a, b = (make_adapter(tmp_path / str(k), host, method, k, whole=False) for k in (1, 2))
    inputs = three_samples(host)
    bank = AdapterBank(fresh(host)[0], {"a": a, "b": b})
    bank.use(["b", "__base__", "a"])
    result = output_of(bank, inputs)
    for row, adapter in enumerate((b, None, a)):
        expected = separate(host, adapter, inputs, row)
        torch.testing.assert_close(result[row : row + 1], expected, atol=1e-5, rtol=1e-4)
    assert (result[2] - separate(host, None, inputs, 2)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("compression", ["random", "singular", "subspace"])
@torch.no_grad()
def test_adapters_with_b_compress_alike_whichever_comes_first(compression, tmp_path):
    shift = make_adapter(tmp_path / "shift", method="bitfit", whole=False)
    options = {"method": "onelora", "whole": False, "compression": compression, "seed": 2}
    vector = make_adapter(tmp_path / "vector", **options)
    inputs = three_samples("timm")
    bank = AdapterBank(fresh("timm")[0], {"shift": shift, "vector": vector})
    bank.use(["vector", "shift", "vector"])
    result = output_of(bank, inputs)
    for row, adapter in enumerate((vector, shift, vector)):
        torch.testing.assert_close(result[row : row + 1], separate("timm", adapter, inputs, row), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("host", "method"), [("timm", "onelora_norms"), ("diffusers", "sum"), ("transformers", "sum+norms")]
)
@torch.no_grad()
def test_norms_heads_and_label_tables_are_each_samples_own(host, method, tmp_path):
    whole = {"extra_modules_to_save": ["head"]} if host == "transformers" else {}
    a, b = (make_adapter(tmp_path / str(k), host, method, k, size=0.03, **whole) for k in (1, 2))
    inputs = three_samples(host)
    bank = AdapterBank(fresh(host)[0], {"a": a, "b": b})
    result = output_of(lambda *x, **k: bank(*x, adapter_names=["b", "a", "b"], **k), inputs)
    for row, adapter in enumerate((b, a, b)):
        torch.testing.assert_close(result[row], separate(host, adapter, inputs, row)[0], atol=1e-5, rtol=1e-4)
    if host != "transformers":
        with pytest.raises(InputError, match="__base__ cannot be chosen"):
            bank.use(["a", None, "b"])


@pytest.mark.parametrize("method", ["sum+bias+scale", "onelora_norms"])
@torch.no_grad()
def test_weights_per_sample_are_blends(method, tmp_path):
    adapters = [make_adapter(tmp_path / str(k), "timm", method, k) for k in (1, 2, 3)]
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, -0.5, 0.7], [0.0, 0.0, 1.0]])
    inputs = three_samples("timm")
    bank = AdapterBank(fresh("timm")[0], {str(k): adapter for k, adapter in enumerate(adapters)})
    bank.use(weights)
    result = output_of(bank, inputs)
    for row, amounts in enumerate(weights.tolist()):
        total = blend(list(zip(adapters, amounts)), base=fresh("timm")[0])
        torch.testing.assert_close(result[row], separate("timm", total, inputs, row)[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_guidance_batches_adapters_of_different_classes_and_swapping(tmp_path):
    from onelora_vision.adapters.file import write_adapter

    a, b = (make_adapter(tmp_path / str(k), "diffusers", "onelora", k) for k in (1, 2))
    key = next(key for key in b.tensors if key.endswith("embedding_table.weight"))
    b.tensors[key] = torch.cat([b.tensors[key], b.tensors[key]])
    b.info.class_names = list("abcdefg")
    write_adapter(b.config, b.tensors, b.info, tmp_path / "more")
    bank = AdapterBank(fresh("diffusers")[0], {"a": a, "b": b})
    inputs = {k: v[:2] for k, v in three_samples("diffusers").items()}
    inputs["class_labels"] = torch.tensor([1, 6])
    bank.use(["a", "b"], tiled=True)
    twice = output_of(bank, {key: torch.cat([value, value]) for key, value in inputs.items()})
    torch.testing.assert_close(twice[:2], twice[2:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(twice[:1], separate("diffusers", a, inputs, 0), atol=1e-5, rtol=1e-4)

    tables = [p.data_ptr() for name, p in bank.named_buffers() if "table_" in name]
    bank.load("b", a)
    assert [p.data_ptr() for name, p in bank.named_buffers() if "table_" in name] == tables
    bank.use([1])
    torch.testing.assert_close(
        output_of(bank, {key: value[:1] for key, value in inputs.items()}), twice[:1], atol=1e-5, rtol=1e-4
    )


@torch.no_grad()
def test_a_thousand_adapters(tmp_path):
    import copy

    first = make_adapter(tmp_path / "a", "timm", "onelora", whole=False)
    adapters = {}
    for number in range(1000):
        one = copy.copy(first)
        one.tensors = {key: tensor * (number / 1000) for key, tensor in first.tensors.items()}
        adapters[str(number)] = one
    bank = AdapterBank(fresh("timm")[0], adapters)
    inputs = three_samples("timm")
    bank.use(torch.tensor([999, 3, 500]))
    result = output_of(bank, inputs)
    for row, number in enumerate((999, 3, 500)):
        expected = separate("timm", adapters[str(number)], inputs, row)
        torch.testing.assert_close(result[row : row + 1], expected, atol=1e-5, rtol=1e-4)


def test_what_a_bank_cannot_hold(tmp_path):
    def make(name, *args, **kwargs):
        return make_adapter(tmp_path / name, *args, whole=False, **kwargs)

    a = make("a")
    cases = [
        ({}, "at least one"),
        ({"a": a, "b": make("b", method="lora")}, "not LORA"),
        ({"a": make("f", method="full")}, "trained in full"),
        ({"a": a, "b": make("c", base_fingerprint="g")}, "one base"),
        ({"a": a, "b": make("d", compression="random")}, "compression"),
        ({"a": make("e", "diffusers")}, "no module proj_out_1"),
        ({"__base__": a}, "cannot be called __base__"),
    ]
    for adapters, message in cases:
        model = fresh("timm")[0]
        with pytest.raises(InputError, match=message):
            AdapterBank(model, adapters)
        assert type(model.blocks[0].mlp.fc1) is torch.nn.Linear
    bank = AdapterBank(fresh("timm")[0], {"apple": a})
    for choice, message in (
        (["aple"], "did you mean 'apple'"),
        ([4], "no adapter number 4"),
        (torch.ones(2, 3), r"expected \(batch, 1\)"),
    ):
        with pytest.raises(InputError, match=message):
            bank.use(choice)
    bank.use([0])
    with pytest.raises(InputError, match="batches of 1 samples, but this one has 2"):
        output_of(bank, example("timm"))


def by_hand(names, width=8, **options):
    """An adapter of the layers ``names``, of ``width`` outputs each."""
    generator = torch.Generator().manual_seed(len(names))
    tensors = {f"base_model.model.{name}.onelora_b": torch.randn(width, generator=generator) for name in names}
    return Adapter(OneLoraConfig(target_modules=list(names), **options), tensors, AdapterInfo("", "", ""), Path("a"))


def encoder():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, batch_first=True), 1).eval()
    nn.init.normal_(model.layers[0].norm1.weight)  # or the sums behind it are zero
    return model


@torch.no_grad()
def test_torchs_encoder_calls_banked_layers_in_evaluation():
    x = torch.randn(3, 4, 8)
    adapters = {"a": by_hand(["layers.0.linear1"]), "b": by_hand(["layers.0.linear1", "layers.0.linear2"])}
    bank = AdapterBank(encoder(), adapters).eval()
    bank.use(["b", None, "a"])
    found = bank(x)
    for row, adapter in enumerate((adapters["b"], None, adapters["a"])):
        model = encoder() if adapter is None else adapter.attach(encoder()).eval()
        torch.testing.assert_close(found[row], model(x)[row])
        assert adapter is None or not torch.allclose(found[row], encoder()(x)[row], atol=1e-3)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = self.again = nn.Linear(8, 8)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("make", "adapter", "message"),
    [
        (encoder, by_hand(["layers.0.self_attn.out_proj"]), r"cannot adapt layers\.0\.self_attn\.out_proj"),
        (Odd, by_hand(["fc"]), "cannot adapt fc: the same module is also registered as again"),
        (Odd, by_hand(["computed"], compression="singular"), "computed: compression='singular' reads the weight"),
        (nn.ModuleDict, by_hand(["fc"]), "no module fc"),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused_in_a_bank_and_in_attaching(make, adapter, message):
    model = make()
    with pytest.raises(InputError, match=message):
        AdapterBank(model, {"a": adapter})
    with pytest.raises(InputError, match=message if "no module" not in message else "no module matches"):
        adapter.attach(model)
    assert str(model) == str(make())


def test_a_lora_on_a_layer_that_is_not_called_is_refused():
    name = "layers.0.self_attn.out_proj"
    tensors = {f"base_model.model.{name}.lora_{part}.weight": t for part, t in LORA.items()}
    adapter = Adapter(LoraConfig(r=1, target_modules=[name]), tensors, AdapterInfo("", "", ""), Path("a"))
    with pytest.raises(InputError, match="cannot adapt layers"):
        adapter.attach(encoder())
    linear = {key.replace("self_attn.out_proj", "linear1"): tensor for key, tensor in tensors.items()}
    config = LoraConfig(r=1, lora_alpha=1, target_modules=["layers.0.linear1"])
    model = Adapter(config, linear, AdapterInfo("", "", ""), Path("a")).attach(encoder())
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), model.train()(x))
        assert not torch.allclose(model.eval()(x), encoder()(x), atol=1e-3)
