import numpy as np
import pytest
import torch
from PIL import Image

from onelora_vision.adapters.file import save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.base import fingerprint
from onelora_vision.backbones.depth_anything import DepthAnythingBase, depth_adaptation
from onelora_vision.errors import InputError
from onelora_vision.inference.depth import estimate_depth
from onelora_vision.inference.loading import load_adapted
from onelora_vision.methods.apply import apply_method
from onelora_vision.plots.depth import ComparedDepth, colorize, save_depth_comparison, save_depth_png


@pytest.fixture(scope="module")
def base(tiny_depth_anything, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_depth_anything().save_pretrained(folder)
    return folder


def loaded(folder):
    found = DepthAnythingBase.load(folder)
    found.model.eval()
    return found


def picture(width: int = 90, height: int = 70) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_png_holds_millimetres(tmp_path):
    depth = np.array([[0.0004, 0.0006, 1.2345], [65.535, 80.0, np.nan]], np.float32)
    assert save_depth_png(tmp_path / "d.png", depth) == 1  # 80 m do not fit
    with Image.open(tmp_path / "d.png") as image:
        assert image.mode.startswith("I;16")
        np.testing.assert_array_equal(np.asarray(image), [[0, 1, 1235], [65535, 65535, 0]])


def test_colors_run_from_near_to_far():
    colors = colorize(np.array([[1.0, 5.0, 9.0, 20.0, np.nan]]), near=1, far=9)
    assert colors.dtype == np.uint8
    assert colors.shape == (1, 5, 3)
    assert (colors[0, 2] == colors[0, 3]).all()
    assert (colors[0, 4] == 255).all()
    assert len({tuple(color) for color in colors[0].tolist()}) == 4
    np.testing.assert_array_equal(colorize(np.array([[1.0, 5.0, 9.0]])), colorize(np.array([[1.0, 5.0, 9.0]]), 1, 9))
    assert (colorize(np.full((2, 2), np.nan)) == 255).all()


def test_depth_of_a_picture_has_its_size(base):
    depth = estimate_depth(loaded(base), picture())
    assert depth.shape == (70, 90)
    assert depth.dtype == np.float32
    assert 0 < depth.min() <= depth.max() < 10
    coarse = estimate_depth(loaded(base), picture(), "8x12")
    assert coarse.shape == (70, 90)
    assert not np.allclose(coarse, depth)


def test_an_adapter_is_loaded_with_its_base_and_range(base, tmp_path):
    found = DepthAnythingBase.load(base).fit(max_depth=80, train_head=True)
    mark = found.fingerprint()
    adapted = found.model = apply_method(found.model, "onelora", found.adaptation()).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.01 * torch.randn_like(parameter)
    info = AdapterInfo(task="depth", method="onelora", base=str(base), base_fingerprint=mark)
    info.extra = {"max_depth": 80, "resolution": "8x12"}
    save_adapter(adapted, tmp_path / "adapter", info)
    expected = estimate_depth(found, picture(), "8x12")
    estimator = load_adapted(tmp_path / "adapter")
    assert estimator.max_depth == 80
    np.testing.assert_allclose(estimator(picture()), expected, rtol=1e-5)
    plain = estimate_depth(loaded(base).fit(max_depth=80), picture(), "8x12")
    assert np.abs(plain - expected).max() > 0.01


def test_adapters_of_other_tasks_are_refused(base, tmp_path):
    model = DepthAnythingBase.load(base).model
    adapted = apply_method(model, "onelora", depth_adaptation(model))
    save_adapter(adapted, tmp_path / "adapter", AdapterInfo(task="generation", method="onelora", base=str(base)))
    with pytest.raises(InputError, match="an adapter for generation, not for depth"):
        load_adapted(tmp_path / "adapter", task="depth")


def test_comparison_is_one_picture_with_a_row_per_frame(tmp_path):
    depth = torch.rand(8, 12) * 50 + 2
    valid = torch.rand(8, 12) > 0.3
    row = ComparedDepth(torch.rand(3, 8, 12), torch.where(valid, depth, torch.nan), valid, depth * 2, depth + 1)
    save_depth_comparison(tmp_path / "one.png", [row], far=80)
    save_depth_comparison(tmp_path / "three.png", [row] * 3, far=80)
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "three.png") as three:
        assert three.height > 2 * one.height
        assert three.width == one.width


def test_another_base_is_refused(base, tiny_depth_anything, tmp_path):
    model = DepthAnythingBase.load(base).model
    info = AdapterInfo(task="depth", method="onelora", base=str(base), base_fingerprint=fingerprint(model, ["head"]))
    save_adapter(apply_method(model, "onelora", depth_adaptation(model)), tmp_path / "adapter", info)
    other = tiny_depth_anything()
    with torch.no_grad():
        other.backbone.embeddings.cls_token += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="trained on another base"):
        load_adapted(tmp_path / "adapter", tmp_path / "other")
