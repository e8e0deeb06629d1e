import pytest
import torch
from torch import nn

from onelora_vision.backbones.depth_anything import DepthAnythingBase, small_depth_anything
from train_scripts import pretrain_embedded


def test_a_few_steps_make_a_base_that_loads(tmp_path, monkeypatch, capsys):
    rooms = pretrain_embedded.rooms
    monkeypatch.setattr(pretrain_embedded, "rooms", lambda seed, count: rooms(seed, min(count, 6)))
    pretrain_embedded.pretrain_depth(tmp_path, 2, 0)
    model = DepthAnythingBase.load(tmp_path / "depth").model
    assert model.config.max_depth == 10
    assert (tmp_path / "depth" / "model.safetensors").stat().st_size < 4_000_000
    assert "abs_rel" in capsys.readouterr().out


def test_rooms_depend_on_the_seed():
    images, depth, valid = pretrain_embedded.rooms(0, 2)
    assert images.shape == (2, 3, 64, 64)
    assert images.dtype == torch.uint8
    assert depth.shape == valid.shape == (2, 64, 64)
    assert torch.equal(pretrain_embedded.rooms(0, 1)[1], depth[:1])
    assert not torch.equal(pretrain_embedded.rooms(1, 1)[1], depth[:1])


@pytest.mark.parametrize(("spread", "seen"), [(False, 0.01), (True, 0.3)])
def test_spread_norms_let_the_feature_sum_see_something(spread, seen):
    model = small_depth_anything(10)
    if spread:
        pretrain_embedded._spread_norms(model)
    norm = next(module for module in model.backbone.modules() if isinstance(module, nn.LayerNorm))
    x = norm(torch.randn(50, 128, generator=torch.Generator().manual_seed(0)))
    share = x.sum(1).square().mean().sqrt() / (x.square().mean().sqrt() * 128**0.5)
    assert bool(share > seen) == spread
