import numpy as np
import pytest

from onelora_vision.data.synthetic.scenes import RANGES, SceneFrames, render_scene
from onelora_vision.errors import InputError


@pytest.mark.parametrize("kind", RANGES)
def test_a_scene_is_a_function_of_its_seed(kind):
    first, again, other = render_scene(kind, 3), render_scene(kind, 3), render_scene(kind, 4)
    for a, b in zip(first, again):
        np.testing.assert_array_equal(a, b)
    assert np.abs(first.image.astype(int) - other.image).mean() > 5
    assert first.image.dtype == np.uint8
    assert first.image.shape == (64, 64, 3)
    assert first.depth.shape == first.valid.shape == (64, 64)


@pytest.mark.parametrize("kind", RANGES)
def test_depth_is_within_the_range_and_varied(kind):
    near, far = RANGES[kind]
    scenes = [render_scene(kind, seed, 32, 32) for seed in range(30)]
    for scene in scenes:
        assert scene.depth[scene.valid].min() >= near
        assert scene.depth[scene.valid].max() <= far
        assert (scene.depth[~scene.valid] == 0).all()
        assert scene.valid.mean() > 0.4
    depths = np.concatenate([scene.depth[scene.valid] for scene in scenes])
    assert np.percentile(depths, 95) > 4 * np.percentile(depths, 5)


def test_rooms_are_closed_and_streets_have_a_sky():
    assert all(render_scene("rooms", seed, 16, 16).valid.mean() > 0.99 for seed in range(10))
    assert sum((~render_scene("streets", seed, 16, 16).valid).mean() > 0.05 for seed in range(10)) >= 8


def test_size_changes_the_sampling_not_the_scene():
    small, large = render_scene("rooms", 5, 32, 32), render_scene("rooms", 5, 96, 96)
    # the middle one of nine rays goes through the centre of the small pixel
    np.testing.assert_allclose(small.depth, large.depth[1::3, 1::3], rtol=1e-3)
    wide = render_scene("rooms", 5, 32, 64)
    np.testing.assert_allclose(wide.depth[:, 16:48], small.depth, rtol=1e-3)


def test_frames_of_different_splits_differ_and_are_kept():
    train, test = SceneFrames("streets", "train", 3, 16, 16), SceneFrames("streets", "test", 3, 16, 16)
    assert len(train) == 3
    assert train[1] is train[1]
    assert not np.array_equal(train[1].image, test[1].image)
    assert train[1].name == "streets train 1"
    assert len(list(train)) == 3


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="'street' scenes; did you mean 'streets'"):
        render_scene("street", 0)
    with pytest.raises(InputError, match="no split 'val'"):
        SceneFrames("rooms", "val", 1)
