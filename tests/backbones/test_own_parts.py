"""What the base came with, put back into the network that has been trained for something else."""

import warnings

import pytest
import timm
import torch
from tiny_hosts import HOSTS, close, output, shake, tiny_base

from onelora_vision.backbones.depth_anything import DepthAnythingBase
from onelora_vision.backbones.vit import ViTBase
from onelora_vision.diffusion.guidance import base_alone
from onelora_vision.methods.apply import apply_method, head_parameters
from onelora_vision.methods.names import METHODS

NEW = {"timm": {"class_names": ["v", "w", "x", "y"]}, "diffusers": {"class_names": ["v", "w", "x", "y"]},
       "transformers": {"max_depth": 80, "train_head": True}}  # fmt: skip
OFF_BASE = {name for name, row in METHODS.items() if row.peft and row.peft.off_base}
CASES = [(host, name) for host in HOSTS for name in METHODS if (host, name) != ("diffusers", "ln_tuning")]


def fitted(host, method, **fit):
    """The base and its own parts, and the network that is to be trained on it."""
    base = tiny_base(host)
    own = base.own_parts()
    base.fit(**fit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return base, own, apply_method(base.model, method, base.adaptation()).eval()


@pytest.mark.parametrize(("host", "method"), CASES)
def test_the_own_parts_are_the_base_s_and_all_else_stays_as_it_is_trained(host, method):
    base, own, model = fitted(host, method, **NEW[host])
    if method not in OFF_BASE:
        with base.with_own_parts(own):
            close(output(model, host), output(tiny_base(host).model, host))
    trained = output(shake(model, size=0.2), host)
    with base.with_own_parts(own):
        found = output(model, host)
        with base_alone(model):
            close(output(model, host), output(tiny_base(host).model, host))
    assert torch.equal(output(model, host), trained)  # all is back where it was
    # The same training without new classes, except for what stands in the place of the own parts.
    _, _, expected = fitted(host, method, **({"train_head": True} if host == "transformers" else {}))
    heads, parameters = head_parameters(model), dict(expected.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name not in heads:
                parameters[name].copy_(parameter)
    assert heads
    close(found, output(expected, host), 1e-5)
    if method == "head":
        close(found, output(tiny_base(host).model, host))


@pytest.mark.parametrize("method", ["head", "norms", "full"])
@pytest.mark.parametrize("name", ["convnext_atto", "swin_tiny_patch4_window7_224"])
def test_a_head_inside_a_module_that_is_trained_whole(name, method):
    sizes = {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)} if "convnext" in name else {"embed_dim": 8, "img_size": 64}
    options = (
        sizes if "convnext" in name else {**sizes, "window_size": 2, "depths": (1, 1, 1, 1), "num_heads": (1,) * 4}
    )
    torch.manual_seed(0)
    base = ViTBase(model=timm.create_model(name, num_classes=3, **options).eval(), data_config={})
    images = torch.randn(2, 3, 64, 64)
    before, own = base.model(images), base.own_parts()
    assert list(own.modules) == ["head.fc"]
    model = apply_method(base.fit(["a", "b"]).model, method, base.adaptation()).eval()
    with base.with_own_parts(own):
        close(model(images), before)
    shake(model)
    with base.with_own_parts(own):
        assert model(images).shape == (2, 3) and (method == "head") == torch.allclose(model(images), before)
    assert model(images).shape == (2, 2)


def test_the_range_and_the_kind_of_depth_are_the_base_s_own_for_a_block(tiny_depth_anything):
    images = torch.randn(2, 3, 16, 16)
    relative = DepthAnythingBase(model=tiny_depth_anything("relative"))
    before, own = relative.model(pixel_values=images).predicted_depth, relative.own_parts()
    relative.fit(max_depth=10, train_head=True)
    model = apply_method(relative.model, "onelora", relative.adaptation()).eval()
    with pytest.raises(RuntimeError, match="in the block"), relative.with_own_parts(own):
        assert not relative.is_metric and relative.max_depth is None
        close(model(pixel_values=images).predicted_depth, before)
        raise RuntimeError("in the block")
    assert relative.is_metric and relative.max_depth == 10
    assert not torch.allclose(model(pixel_values=images).predicted_depth, before)


def test_own_parts_are_copies_with_the_names_of_their_classes():
    base = tiny_base("diffusers")
    base.class_names = ["a", "b", "c"]
    own = base.own_parts()
    base.fit(["c"])
    assert own.class_names == ["a", "b", "c"] and base.model.null_class == 1
    with torch.no_grad():
        base.model.label_table.weight.zero_()
    with base.with_own_parts(own):
        assert base.model.null_class == 3 and len(base.model.label_table.weight) == 4
        assert base.model.label_table.weight.abs().min() > 0
    assert base.model.null_class == 1 and len(base.model.label_table.weight) == 2


def test_a_base_without_a_head_has_no_own_parts():
    base = ViTBase(model=timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1), data_config={})
    assert base.own_parts().modules == {}
