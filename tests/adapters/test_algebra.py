import math

import pytest
import torch
from tiny_hosts import HOSTS, example, fresh, make_adapter

from onelora_vision.adapters.algebra import average, blend, difference, negate, scale
from onelora_vision.backbones.base import output_of
from onelora_vision.errors import InputError

VECTORS = ["sum", "bias", "scale", "sum+bias+scale"]


@torch.no_grad()
def outputs_of_active(host, terms):
    """What the host's model gives with all adapters active at their weights."""
    model = fresh(host)[0]
    for number, (adapter, _) in enumerate(terms):
        model = adapter.attach(model, f"a{number}")
    names = [f"a{number}" for number in range(len(terms))]
    model.base_model.set_adapter(names)
    for module in model.modules():
        if hasattr(module, "set_scale"):
            for name, (_, weight) in zip(names, terms):
                module.set_scale(name, weight)
    return output_of(model.eval(), example(host))


@torch.no_grad()
def outputs_of(host, adapter):
    return output_of(adapter.attach(fresh(host)[0]).eval(), example(host))


def deltas(host, adapter):
    """Change of weight and bias of each adapted layer, by merging."""
    model = fresh(host)[0]
    before = {name: p.clone() for name, p in model.named_parameters()}
    merged = adapter.attach(model).merge_and_unload()
    return {name: p.detach() - before[name] for name, p in merged.named_parameters() if name in before}


@pytest.mark.parametrize("method", VECTORS)
@pytest.mark.parametrize("host", HOSTS)
def test_a_blend_equals_both_adapters_active_at_their_weights(host, method, tmp_path):
    a = make_adapter(tmp_path / "a", host, method, 1, whole=False)
    b = make_adapter(tmp_path / "b", host, method, 2, whole=False)
    terms = [(a, 0.7), (b, -1.3)]
    result = blend(terms)
    assert {k: v.shape for k, v in result.tensors.items()} == {k: v.shape for k, v in a.tensors.items()}
    expected = outputs_of_active(host, terms)
    assert (expected - outputs_of(host, a)).abs().max() > 1e-3
    torch.testing.assert_close(outputs_of(host, result), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("host", HOSTS)
def test_a_blend_is_the_sum_of_what_the_adapters_change(host, tmp_path):
    a = make_adapter(tmp_path / "a", host, "sum+bias", 1, whole=False)
    b = make_adapter(tmp_path / "b", host, "sum+bias", 2, whole=False)
    changes_a, changes_b = deltas(host, a), deltas(host, b)
    for name, change in deltas(host, blend([(a, 0.7), (b, 0.3)])).items():
        torch.testing.assert_close(change, 0.7 * changes_a[name] + 0.3 * changes_b[name], atol=1e-6, rtol=1e-5)


def test_gammas_multiply(tmp_path):
    a, b = (make_adapter(tmp_path / str(k), "timm", "scale", k, whole=False) for k in (1, 2))
    key = next(iter(a.tensors))
    expected = (1 + 0.5 * (a.tensors[key] - 1)) * (1 - 2 * (b.tensors[key] - 1))
    torch.testing.assert_close(blend([(a, 0.5), (b, -2)]).tensors[key], expected)


def test_methods_of_the_family_mix_and_missing_layers_are_neutral(tmp_path):
    a = make_adapter(tmp_path / "a", "timm", "sum", 1, whole=False)
    b = make_adapter(tmp_path / "b", "timm", "bias+scale", 2, whole=False)
    dropped = [key for key in b.tensors if "blocks.1." in key]
    for key in dropped:
        del b.tensors[key]
    b.config.target_modules = r"blocks\.0\.(?:attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"
    result = blend([(a, 1), (b, 0.5)])
    assert (result.config.use_sum, result.config.use_bias, result.config.use_scale) == (True, True, True)
    torch.testing.assert_close(outputs_of("timm", result), outputs_of_active("timm", [(a, 1), (b, 0.5)]))


def test_difference_average_negation_and_scale_undo_each_other(tmp_path):
    a = make_adapter(tmp_path / "a", "timm", "sum+bias", 1, whole=False)
    b = make_adapter(tmp_path / "b", "timm", "sum+bias", 2, whole=False)
    zero = blend([(a, 1), (negate(a), 1)])
    assert all((tensor == 0).all() for tensor in zero.tensors.values())
    restored = blend([(difference(a, b), 1), (b, 1)])
    for key, tensor in restored.tensors.items():
        torch.testing.assert_close(tensor, a.tensors[key], atol=1e-6, rtol=0)
    for key, tensor in average([a, b]).tensors.items():
        torch.testing.assert_close(2 * tensor, a.tensors[key] + b.tensors[key])
    assert all(torch.equal(scale(a, 2).tensors[key], 2 * a.tensors[key]) for key in a.tensors)


def test_blocks_have_weights_of_their_own(tmp_path):
    a = make_adapter(tmp_path / "a", "diffusers", "onelora", 1, whole=False)
    result = blend([(a, 2)], blocks={1: 0.25})
    for key, tensor in result.tensors.items():
        factor = 0.5 if ".transformer_blocks.1." in key else 2
        assert torch.equal(tensor, factor * a.tensors[key])
    assert result.info.extra["blend_blocks"] == {"1": 0.25}


def test_heads_and_label_tables_are_interpolated(tmp_path):
    for host, part in (("timm", "head.weight"), ("diffusers", "embedding_table.weight")):
        a, b = (make_adapter(tmp_path / f"{host}{k}", host, "onelora", k) for k in (1, 2))
        key = next(key for key in a.tensors if key.endswith(part))
        expected = (1.5 * a.tensors[key] + 0.5 * b.tensors[key]) / 2
        torch.testing.assert_close(blend([(a, 1.5), (b, 0.5)]).tensors[key], expected)
        assert torch.equal(negate(a).tensors[key], a.tensors[key])
        with pytest.raises(InputError, match="weights that sum to 0"):
            difference(a, b)
        assert torch.equal(difference(a, b, whole_from=b).tensors[key], b.tensors[key])


def test_norms_are_summed_around_the_bases_values(tmp_path):
    a, b = (make_adapter(tmp_path / str(k), "timm", "norms", k, whole=False) for k in (1, 2))
    key = next(key for key in a.tensors if key.endswith("blocks.0.norm1.weight"))
    base = fresh("timm")[0]
    start = base.blocks[0].norm1.weight.detach()
    torch.testing.assert_close(blend([(a, 0.6), (b, 0.4)]).tensors[key], 0.6 * a.tensors[key] + 0.4 * b.tensors[key])
    with pytest.raises(InputError, match=r"weights sum to -1, not to 1.*--base"):
        negate(a)
    torch.testing.assert_close(negate(a, base=base).tensors[key], 2 * start - a.tensors[key])
    plain = make_adapter(tmp_path / "plain", "timm", "onelora", 3, whole=False)
    with pytest.raises(InputError, match="not every adapter has it"):
        blend([(a, 0.5), (plain, 0.5)])
    mixed = blend([(a, 0.5), (plain, 0.5)], base=base)
    torch.testing.assert_close(mixed.tensors[key], 0.5 * (a.tensors[key] + start))


@pytest.mark.parametrize("method", ["lora", "mora1", "mora6"])
def test_lora_and_mora_sum_exactly(method, tmp_path):
    options = [{"rank": 2, "lora_alpha": 5}, {"rank": 3}] if method == "lora" else [{}, {}]
    a, b = (make_adapter(tmp_path / str(k), "timm", method, k, whole=False, **options[k]) for k in (0, 1))
    result = blend([(a, 0.7), (b, -0.4)])
    if method == "lora":
        assert result.config.r == result.config.lora_alpha == 5
    changes_a, changes_b = deltas("timm", a), deltas("timm", b)
    for name, change in deltas("timm", result).items():
        torch.testing.assert_close(change, 0.7 * changes_a[name] - 0.4 * changes_b[name], atol=1e-6, rtol=1e-4)
    assert any(change.abs().max() > 1e-3 for change in changes_a.values())


def test_a_blend_is_guided_by_itself_if_one_of_its_adapters_is(tmp_path):
    a, b = (make_adapter(tmp_path / name, seed=seed, whole=False) for name, seed in (("a", 1), ("b", 2)))
    assert blend([(a, 0.5), (b, 0.5)]).info.guidance_distillation is None
    b.info.extra = {"training": {"guidance_distillation": 1.5, "seed": 3}}
    assert blend([(a, 0.5), (b, 0.5)]).info.guidance_distillation == 1.5
    assert blend([(b, 0.5), (a, 0.5)]).info.extra["training"] == {"guidance_distillation": 1.5, "seed": 3}


def test_what_does_not_blend_is_refused_with_the_reason(tmp_path):
    def adapter(name, *args, change=None, **kwargs):
        made = make_adapter(tmp_path / name, *args, **kwargs)
        for key, value in (change or {}).items():
            setattr(made.info, key, value)
        return made

    plain = adapter("plain", change={"extra": {"objective": "epsilon"}})
    cases = [
        (adapter("random", compression="random"), r"different compressions .* sum and random-0"),
        (adapter("lora", method="lora"), "one is ONELORA, the other LORA"),
        (adapter("other", base_fingerprint="g"), "trained on different bases.*fingerprint f"),
        (adapter("classes", change={"class_names": ["a", "x", "c"]}), "class 1 is 'b' in one and 'x'"),
        (adapter("fewer", change={"class_names": ["a"]}), "3 classes, the other 1"),
        (adapter("task", change={"task": "depth"}), "one is for 'classification'"),
        (adapter("sized", change={"extra": {"resolution": 64}}), "resolution is None and 64"),
        (
            adapter("sit", change={"extra": {"objective": "velocity, image at t=1"}}),
            "trained to predict epsilon, the other velocity",
        ),
        (adapter("nobase", change={"base": "x", "base_fingerprint": ""}), "their fingerprints cannot be compared"),
    ]
    for other, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            blend([(plain, 0.5), (other, 0.5)])
        assert "\n" not in str(caught.value)
    seeds = [adapter(f"seed{k}", compression="random", seed=k) for k in (1, 2)]
    seeds[1].config.compression_seed = 5
    with pytest.raises(InputError, match="different compressions"):
        blend([(adapter_, 0.5) for adapter_ in seeds])
    for method in ("dora", "vera"):
        with pytest.raises(InputError, match=r"use_dora|VERA"):
            scale(adapter(method, method=method), 2)
    with pytest.raises(InputError, match="not a finite number"):
        scale(plain, math.nan)
    with pytest.raises(InputError, match="nothing to blend"):
        blend([])
