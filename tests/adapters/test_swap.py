import pytest
import torch
from tiny_hosts import example, fresh, make_adapter

from onelora_vision.adapters.swap import _own_parameters, swap
from onelora_vision.backbones.base import output_of
from onelora_vision.errors import InputError


@pytest.mark.parametrize("method", ["difffit", "onelora_norms", "lora", "dora", "vera", "mora6", "full"])
def test_swap_fills_every_method(method, tmp_path):
    a, b = (make_adapter(tmp_path / str(k), "diffusers", method, k) for k in (1, 2))
    model = a.attach(fresh("diffusers")[0]).eval()
    own, known = _own_parameters(model, "default"), b.check_fits(model, "default")
    assert {key: known[key].data_ptr() for key in own if key in known}.items() <= {
        key: value.data_ptr() for key, value in own.items()
    }.items()
    # VeRA has buffers besides, and PEFT names DoRA's magnitudes in its own way: these go PEFT's way
    assert set(own) == set(known) or method in ("vera", "dora")
    swap(model, b)
    expected = output_of(b.attach(fresh("diffusers")[0]).eval(), example("diffusers"))
    assert torch.equal(output_of(model, example("diffusers")), expected)


@torch.no_grad()
def test_runs_with_other_seeds_swap(tmp_path):
    a, b = (make_adapter(tmp_path / str(k), "timm", "onelora", k) for k in (1, 2))
    b.config.compression_seed = 2  # of a sum, which has no use for it
    model = a.attach(fresh("timm")[0]).eval()
    swap(model, b)
    assert torch.equal(
        output_of(model, example("timm")), output_of(b.attach(fresh("timm")[0]).eval(), example("timm"))
    )


@torch.no_grad()
def test_swap_copies_into_the_parameters_that_are_there(tmp_path):
    a, b = (make_adapter(tmp_path / str(k), "timm", "onelora_norms", k) for k in (1, 2))
    model = a.attach(fresh("timm")[0]).eval()
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    swap(model, b)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    expected = output_of(b.attach(fresh("timm")[0]).eval(), example("timm"))
    assert torch.equal(output_of(model, example("timm")), expected)
    other = make_adapter(tmp_path / "c", "timm", "onelora_norms", compression="random")
    with pytest.raises(InputError, match="its compression is 'random-0'"):
        swap(model, other)
    with pytest.raises(InputError, match="no adapter 'x'"):
        swap(model, b, "x")


def test_another_scale_is_not_swapped_in(tmp_path):
    a, b = (make_adapter(tmp_path / str(k), "timm", "lora", k) for k in (1, 2))
    b.config.use_rslora = True  # alpha over the root of the rank
    model = a.attach(fresh("timm")[0])
    with pytest.raises(InputError, match="its use_rslora is True, but the adapter to replace has False"):
        swap(model, b)
