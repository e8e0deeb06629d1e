"""Layers that a host bypasses, shares, computes or leaves empty: adapted correctly, or refused with nothing changed."""

import copy
import pickle
import warnings
from functools import partial

import pytest
import timm
import torch
import torchvision
from accelerate import cpu_offload
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.utils import parametrizations, prune

from onelora_vision import InputError, MoraConfig, OneLoraConfig, apply_method
from onelora_vision.backbones.base import Adaptation
from onelora_vision.tuners import hosts
from onelora_vision.tuners.onelora.compression import random_compression, singular_compression, subspace_compression

CONFIGS = [OneLoraConfig, MoraConfig]
X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def config(kind=OneLoraConfig, **options):
    return kind(**{"target_modules": ["first"], "init_weights": False, **options})


class Net(nn.Module):
    """``change`` is made to the first of two layers, as ``nn.utils.weight_norm`` is."""

    def __init__(self, change=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        if change is not None:
            change(self.first)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def has_adapters(model):
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def refuses_to_merge(model, message, x=X, layer="first"):
    """Merging is refused for the model and for the layer, and neither changes anything."""
    expected = model(x)
    inside = model.get_base_model().get_submodule(layer)
    for merge in (model.merge_adapter, model.merge_and_unload, inside.merge):
        with pytest.raises(InputError, match=f"cannot merge into {layer}.*{message}"):
            merge()
        assert not any(m.merged for m in model.modules() if isinstance(m, BaseTunerLayer))
        assert torch.equal(model(x), expected)


# Quantised weights; the libraries that make them are in test_quantised.py.


class Fp8Linear(nn.Linear):
    """Stores fp8 and a scale, as the quantised layers of the host libraries do."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features)
        self.scale = linear.weight.detach().abs().max() / 400
        self.weight = nn.Parameter((linear.weight.detach() / self.scale).to(torch.float8_e4m3fn), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x):
        return nn.functional.linear(x, self.weight.float() * self.scale, self.bias)


def fp8_net():
    net = Net()
    net.first = Fp8Linear(net.first)
    return net


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_quantised_base_trains_and_is_not_merged(kind):
    model = get_peft_model(fp8_net(), config(kind, target_modules=["first", "second"]))
    model(X).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    refuses_to_merge(model, r"float8_e4m3fn.*full precision")
    base = fp8_net()(X)
    assert torch.equal(model(X, adapter_names=["__base__"] * 5), base) and torch.equal(model.unload()(X), base)


def test_a_layer_that_cannot_be_merged_leaves_those_before_it_unmerged():
    net = Net()
    net.second = Fp8Linear(net.second)
    model = get_peft_model(net, config(target_modules=["first", "second"]))
    refuses_to_merge(model, "float8", layer="second")
    merged = get_peft_model(Net(), config(target_modules=["first", "second"]))
    merged.get_base_model().second.onelora_b["default"].data[3] = torch.nan
    for merge in (merged.merge_adapter, merged.merge_and_unload):
        with pytest.raises(InputError, match=r"second.*NaN"):
            merge(safe_merge=True)
        assert has_adapters(merged) and not merged.get_base_model().first.merged


def test_only_what_is_merged_must_be_mergeable():
    model = get_peft_model(fp8_net(), config(target_modules=["first"]))
    model.add_adapter("plain", config(target_modules=["second"]))
    model.set_adapter("plain")
    expected = model(X)
    model.merge_adapter()
    torch.testing.assert_close(model(X), expected)


def test_the_change_of_weight_does_not_need_a_quantised_weight_unless_gamma_scales_it():
    first = get_peft_model(fp8_net(), config()).get_base_model().first
    torch.testing.assert_close(
        first.get_delta_weight("default"), first.onelora_b["default"][:, None].expand(8, 8).detach()
    )
    scaled = get_peft_model(fp8_net(), config(use_scale=True)).get_base_model().first
    with pytest.raises(InputError, match=r"first: .*float8"):
        scaled.get_delta_weight("default")


def test_a_quantised_module_is_not_trained_whole():
    model = fp8_net()
    with pytest.raises(InputError, match=r"cannot train first as a whole.*float8_e4m3fn"):
        get_peft_model(model, config(target_modules=["second"], modules_to_save=["first"]))
    with pytest.raises(InputError, match="cannot train first as a whole"):
        apply_method(model, "full", Adaptation([]))
    assert not has_adapters(model) and isinstance(model.first, Fp8Linear)


# Computed weights.

COMPUTED = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
}


def computed(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Net(COMPUTED[name]).eval()


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_weight_is_adapted_and_not_merged(name, kind):
    model, base = get_peft_model(computed(name), config(kind)).eval(), computed(name)
    first = model.get_base_model().first
    with torch.no_grad():
        first.merge = None  # what the layer itself computes is its base's output and the adapter's part
        change = first(X) - base.first(X)
        plain = get_peft_model(Net(), config(kind)).get_base_model()
        plain.first.load_state_dict(
            {k: v for k, v in first.state_dict().items() if not k.startswith("base_layer")}, strict=False
        )
        torch.testing.assert_close(change, plain.first(X) - Net().first(X), atol=1e-5, rtol=1e-5)
        del first.merge
    refuses_to_merge(model, "computed from other tensors")
    assert torch.equal(model.unload()(X), base(X))


def test_a_computed_bias_is_not_merged_and_a_weight_made_permanent_is():
    model = get_peft_model(Net(lambda layer: prune.l1_unstructured(layer, "bias", 0.5)), config())
    refuses_to_merge(model, "the bias is computed")
    prune.remove(model.get_base_model().first.base_layer, "bias")
    expected = model(X)
    model.merge_adapter()
    torch.testing.assert_close(model(X), expected)


@pytest.mark.parametrize("name", ["old weight_norm", "pruned"])
def test_a_computed_weight_that_cannot_be_copied_is_not_trained_whole(name):
    with pytest.raises(InputError, match=r"cannot train first as a whole.*make it permanent"):
        get_peft_model(computed(name), config(target_modules=["second"], modules_to_save=["first"]))


@pytest.mark.parametrize("name", COMPUTED)
def test_singular_compression_of_a_computed_weight_is_refused(name):
    model = computed(name)
    with pytest.raises(InputError, match="first: compression='singular' reads the weight, which is computed"):
        get_peft_model(model, config(compression="singular", target_modules=["second", "first"]))
    assert not has_adapters(model)


class Halved(nn.Linear):
    def forward(self, x):
        return super().forward(x / 2)


def test_a_linear_with_a_forward_of_its_own_is_merged_only_if_it_computes_the_same():
    net = Net()
    net.first = Halved(8, 8)
    refuses_to_merge(get_peft_model(net, config()), "forward of Halved")
    net.first = timm.layers.Linear(8, 8)
    model = get_peft_model(net, config())
    expected = model(X)
    model.merge_adapter()
    torch.testing.assert_close(model(X), expected)


def test_a_layer_before_its_first_input_is_refused():
    net = Net()
    net.first = nn.LazyLinear(8)
    with pytest.raises(InputError, match="cannot adapt first: a LazyLinear has no weight"):
        get_peft_model(net, config())


# Shared layers and weights.


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 8), self.first])

    def forward(self, x):
        return self.heads[1](self.heads[0](self.first(x)))


@pytest.mark.parametrize("targets", [["first"], "all-linear"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_module_held_in_two_places_is_refused(kind, targets):
    model = Twins()
    with pytest.raises(InputError, match=r"cannot adapt first: .*heads\.1.*exclude_modules"):
        get_peft_model(model, config(kind, target_modules=targets))
    assert not has_adapters(model)
    with pytest.raises(InputError, match=r"cannot train first as a whole: .*heads\.1"):
        get_peft_model(model, config(kind, target_modules=["heads.0"], modules_to_save=["first"]))
    model = get_peft_model(model, config(kind, target_modules="all-linear", exclude_modules=["first"]))
    assert isinstance(model.get_base_model().heads[0], BaseTunerLayer)


class SharedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        block = Net()
        self.blocks = nn.ModuleList([block, block])
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.blocks[1](self.blocks[0](x)))


def test_a_layer_of_a_block_held_in_two_places_is_adapted_merged_saved_and_loaded(tmp_path):
    model = get_peft_model(SharedBlock(), config(target_modules=["first"], modules_to_save=["second"]))
    model.save_pretrained(tmp_path)
    expected = model(X)
    assert not torch.allclose(expected, SharedBlock()(X))
    assert torch.equal(PeftModel.from_pretrained(SharedBlock(), tmp_path)(X), expected)
    torch.testing.assert_close(model.merge_and_unload()(X), expected)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.first, self.out = nn.Embedding(6, 8), nn.Linear(8, 8), nn.Linear(8, 6, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.first(self.embed(x)))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_tied_weight_is_adapted_in_its_place_alone_and_not_merged(kind):
    ids = torch.arange(6)
    model = get_peft_model(Tied(), config(kind, target_modules=["first", "out"]))
    expected = model(ids)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(InputError, match=r"cannot merge into out: .*tied to embed\.weight.*untie"):
            merge()
    assert not model.get_base_model().first.merged and torch.equal(model(ids), expected)
    layer, embed = model.get_base_model().out, model.get_base_model().embed
    layer.merge()  # a layer alone, as diffusers merges them: what is tied to it stays as it is
    torch.testing.assert_close(model(ids), expected)
    assert torch.equal(embed.weight, Tied().embed.weight)
    layer.unmerge()
    assert layer.base_layer.weight is embed.weight and torch.equal(model(ids), expected)
    layer.base_layer.weight = nn.Parameter(layer.base_layer.weight.detach().clone())
    torch.testing.assert_close(model.merge_and_unload()(ids), expected)


# Hosts that read weights without calling the layer.


def torchvision_vit():
    sizes = {"image_size": 16, "patch_size": 8, "hidden_dim": 8, "mlp_dim": 16, "num_classes": 3}
    return torchvision.models.VisionTransformer(num_layers=1, num_heads=2, **sizes)


OUT = "encoder.layers.encoder_layer_0.self_attention.out_proj"


@pytest.mark.parametrize("inject", [get_peft_model, lambda model, config: inject_adapter_in_model(config, model)])
@pytest.mark.parametrize("targets", ["all-linear", ["out_proj", "heads.head"], r".*out_proj|heads\.head"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_output_layer_of_torchs_attention_is_refused_by_every_way_in(kind, targets, inject):
    model = torchvision_vit()
    with pytest.raises(InputError, match=rf"cannot adapt {OUT}: MultiheadAttention reads.*exclude_modules"):
        inject(model, config(kind, target_modules=targets))
    assert not has_adapters(model)
    inject(model, config(kind, target_modules="all-linear", exclude_modules=["out_proj"]))
    assert has_adapters(model)


@pytest.mark.parametrize("method", ["onelora", "mora6", "lora", "dora"])
def test_methods_of_others_are_refused_there_too(method):
    model = torchvision_vit()
    with pytest.raises(InputError, match=f"cannot adapt {OUT}"):
        apply_method(model, method, Adaptation([OUT]))
    with pytest.raises(InputError, match=f"cannot train {OUT} as a whole"):
        apply_method(model, method, Adaptation(["heads.head"], [], [OUT]))
    assert not has_adapters(model)
    adapted = apply_method(model, method, Adaptation(hosts.adaptable_linears(model)))
    assert not isinstance(adapted.get_base_model().get_submodule(OUT), BaseTunerLayer)


def encoder():
    torch.manual_seed(0)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)


PADDING = torch.tensor([[False, False, False, True], [False] * 4, [False, False, True, True]])
TOKENS = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("padding", [None, PADDING])
@pytest.mark.parametrize("with_grad", [False, True])
@pytest.mark.parametrize("method", ["sum+bias+scale", "mora6", "lora"])
def test_torchs_encoder_calls_adapted_layers_in_evaluation_too(method, with_grad, padding):
    names = ["layers.1.linear1", "layers.0.linear2", "layers.1.linear2"]
    model = apply_method(encoder(), method, Adaptation(names, ["layers.0.norm1"], ["layers.1.norm2"]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    seen = slice(None) if padding is None else ~padding
    expected = model.train()(TOKENS, src_key_padding_mask=padding)[seen]
    with torch.set_grad_enabled(with_grad):
        found = model.eval()(TOKENS, src_key_padding_mask=padding)[seen]
        torch.testing.assert_close(found, expected)
        base = encoder().eval()(TOKENS, src_key_padding_mask=padding)[seen]
        assert not torch.allclose(found, base, atol=1e-3)
        with model.disable_adapter():
            torch.testing.assert_close(model(TOKENS, src_key_padding_mask=padding)[seen], base)


def test_mixed_batches_and_unloading_in_torchs_encoder():
    model = get_peft_model(
        encoder(), config(target_modules=["linear1", "linear2"], modules_to_save=["layers.0.norm1"])
    )
    model.eval()
    with torch.no_grad():
        model.get_base_model().layers[0].norm1.modules_to_save["default"].weight.mul_(2)
        adapted, base = model(TOKENS, src_key_padding_mask=PADDING), encoder().eval()(TOKENS)
        mixed = model(TOKENS, src_key_padding_mask=PADDING, adapter_names=["default", "__base__", "default"])
        torch.testing.assert_close(mixed[[0, 2]][~PADDING[[0, 2]]], adapted[[0, 2]][~PADDING[[0, 2]]])
        torch.testing.assert_close(mixed[1], base[1])
        copy.deepcopy(pickle.loads(pickle.dumps(model)))
        merged = copy.deepcopy(model).merge_and_unload()
        torch.testing.assert_close(merged(TOKENS, src_key_padding_mask=PADDING)[~PADDING], adapted[~PADDING])
        model = get_peft_model(encoder(), config(target_modules=["linear1"])).eval()
        unloaded, plain = model.unload(), encoder().eval()
        assert unloaded.use_nested_tensor and not any(m._forward_pre_hooks for m in unloaded.modules())
        expected = plain(TOKENS, src_key_padding_mask=PADDING)
        assert torch.equal(unloaded(TOKENS, src_key_padding_mask=PADDING), expected)


# What is changed when injection is refused, and what "all-linear" reaches.


def unet():
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    sizes = {"block_out_channels": (8,), "layers_per_block": 1, "cross_attention_dim": 8, "norm_num_groups": 4}
    return UNet2DConditionModel(sample_size=8, attention_head_dim=4, mid_block_type=None, **blocks, **sizes)


def test_an_adapter_that_is_refused_leaves_its_name_free():
    model = unet()
    model.add_adapter(config(target_modules=["to_q"]), "one")
    with pytest.raises(InputError, match=r"only Linear layers.*conv1 \(Conv2d\)"):
        model.add_adapter(config(target_modules=["to_v", "down_blocks.0.resnets.0.conv1"]), "two")
    assert list(model.peft_config) == ["one"]
    model.add_adapter(config(target_modules=["to_v"]), "two")
    assert list(model.peft_config) == ["one", "two"]


def test_all_linear_is_left_as_it_was_by_a_refusal_and_reaches_layers_that_have_an_adapter():
    settings = config(target_modules="all-linear")
    with pytest.raises(InputError):
        get_peft_model(Twins(), settings)
    assert settings.target_modules == "all-linear"
    model = get_peft_model(Net(), config(modules_to_save=["second"]))
    model.add_adapter("more", config(target_modules="all-linear"))
    assert model.peft_config["more"].target_modules == {"first"}  # nothing inside the wrapper of second
    assert set(model.get_base_model().first.onelora_b) == {"default", "more"}


def test_a_method_that_fits_no_layer_is_refused_before_any_changes():
    net = Net()
    net.second = nn.Linear(8, 1)
    with pytest.raises(InputError, match="second: 1 outputs are too few"):
        get_peft_model(net, config(MoraConfig, target_modules=["first", "second"]))
    assert not has_adapters(net)


# Bases without values when the adapter is added.

COMPRESSIONS = {
    "random": lambda weight: random_compression(8, 0),
    "singular": singular_compression,
    "subspace": partial(subspace_compression, rank=16),
}


def vector_of(model):
    (vector,) = model.get_base_model().first.compression_vectors.values()
    return vector


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_base_made_on_the_meta_device_and_loaded_later_is_as_one_loaded_before(compression):
    options = {"compression": compression, "use_bias": True, "use_scale": True, "modules_to_save": ["second"]}
    expected = get_peft_model(Net(), config(**options, init_weights=True))
    with torch.device("meta"):
        model = get_peft_model(Net(), config(**options, init_weights=True))
    with pytest.raises(InputError, match=r"cannot merge into first: .*no values yet"):
        model.merge_adapter()
    model.to_empty(device="cpu")
    base = {k: v for k, v in expected.state_dict().items() if "base_layer" in k or "original_module" in k}
    model.load_state_dict(base, strict=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    assert torch.equal(model(X), expected(X)) and torch.equal(vector_of(model), vector_of(expected))
    model.to("meta").to_empty(device="cpu")
    model.load_state_dict(expected.state_dict())
    assert torch.equal(model(X), expected(X)) and torch.equal(vector_of(model), vector_of(expected))


def test_a_matrix_of_mora_made_on_the_meta_device_starts_as_the_identity():
    with torch.device("meta"):
        model = get_peft_model(Net(), config(MoraConfig, init_weights=True))
    model.to_empty(device="cpu")
    assert not any(p.any() for name, p in model.named_parameters() if "mora_" in name)


@pytest.mark.parametrize("assign", [False, True])
def test_the_singular_vector_follows_a_base_loaded_later(assign):
    model = get_peft_model(Net(), config(compression="singular"))
    other = get_peft_model(Net(seed=1), config(compression="singular"))
    model.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(vector_of(model), singular_compression(Net(seed=1).first.weight))
    assert torch.equal(model(X), other(X))


def test_the_singular_vector_follows_a_change_in_place_and_nothing_else():
    model = get_peft_model(Net(), config(compression="singular"))
    vector = vector_of(model)
    model.load_state_dict(get_peft_model_state_dict(model), strict=False)
    model.merge_adapter()
    model.unmerge_adapter()
    model(X)
    assert vector_of(model) is vector
    model.bfloat16().float()(X)
    assert torch.equal(vector_of(model), vector)
    with torch.no_grad():
        model.get_base_model().first.base_layer.weight.copy_(Net(seed=1).first.weight)
    model(X)
    assert torch.equal(vector_of(model), singular_compression(Net(seed=1).first.weight))


def test_singular_compression_before_the_base_is_loaded_says_so_at_first_use():
    with torch.device("meta"):
        model = get_peft_model(Net(), config(compression="singular"))
    with pytest.raises(InputError, match=r"first: compression='singular' reads the weight, .*load the base first"):
        model(X.to("meta"))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_adapters_made_on_the_meta_device_are_loaded_whole(compression):
    options = {"compression": compression, "use_scale": True, "modules_to_save": ["second"]}
    saved = get_peft_model(Net(), config(**options))
    state = {k.removeprefix("base_model.model."): v for k, v in get_peft_model_state_dict(saved).items()}
    model = inject_adapter_in_model(config(**options), Net(), low_cpu_mem_usage=True)
    set_peft_model_state_dict(model, state, low_cpu_mem_usage=True)
    assert torch.equal(model(X), saved(X))


def test_a_module_trained_whole_follows_a_base_loaded_later_until_it_is_trained():
    def loaded(model):
        state = get_peft_model(Net(seed=1), config()).state_dict()
        names = {"second": "second.original_module"}
        state = {key.replace("second", names["second"]): value for key, value in state.items() if "onelora" not in key}
        model.load_state_dict(state, strict=False)
        return model.get_base_model().second.modules_to_save["default"].weight

    model = get_peft_model(Net(), config(modules_to_save=["second"]))
    assert torch.equal(loaded(model), Net(seed=1).second.weight)
    model = get_peft_model(Net().bfloat16(), config(modules_to_save=["second"]))
    assert torch.equal(loaded(model), Net(seed=1).bfloat16().second.weight.float())
    model = get_peft_model(Net(), config(modules_to_save=["second"]))
    with torch.no_grad():
        model.get_base_model().second.modules_to_save["default"].weight.fill_(3)
    assert (loaded(model) == 3).all()


def test_an_offloaded_base_is_adapted_and_merged():
    net = Net()
    cpu_offload(net, execution_device=torch.device("cpu"))
    assert net.first.weight.is_meta
    with pytest.raises(InputError, match="first: compression='singular' reads the weight, which is offloaded"):
        get_peft_model(net, config(compression="singular"))
    model = get_peft_model(net, config(compression="random", use_bias=True))
    expected = model(X)
    assert not torch.allclose(expected, Net()(X))
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(X), expected)
    model.unmerge_adapter()
    assert torch.equal(model(X), expected)


# diffusers' layerwise casting.


@pytest.mark.parametrize("kind", [*CONFIGS, LoraConfig])
def test_layerwise_casting_over_adapted_layers(kind):
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 2, "sample_size": 4, "patch_size": 2}
    options = {"init_lora_weights": False} if kind is LoraConfig else {"init_weights": False}
    dit = DiTTransformer2DModel(num_layers=1, num_embeds_ada_norm=4, **sizes).eval()
    model = inject_adapter_in_model(kind(target_modules=["to_q", "ff.net.2"], **options), dit)
    rounded = copy.deepcopy(model)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    low = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float8_e4m3fn}
    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            parameter.copy_(parameter.to(torch.float8_e4m3fn).float() if name in low else parameter)
        inputs = {"timestep": torch.tensor([3]), "class_labels": torch.tensor([1])}
        latents = torch.randn(1, 2, 4, 4)
        # not equal to the bit: where in memory a copy lies decides how a product's sum is ordered
        torch.testing.assert_close(model(latents, **inputs).sample, rounded(latents, **inputs).sample)
    assert low and not [name for name in low if "onelora_" in name or "mora_" in name]
    if kind is not LoraConfig:
        with pytest.raises(InputError, match="float8_e4m3fn"):
            model.transformer_blocks[0].attn1.to_q.merge()
