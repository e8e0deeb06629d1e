import numpy as np
import pytest

from onelora_vision.data.synthetic.raycast import CHECKER, Camera, Scene, render

AHEAD = Camera(position=(0.0, 1.0, 0.0), yaw=0.0, pitch=0.0, fov=np.radians(60))


def scene() -> Scene:
    return Scene(light=(0.3, 1.0, -0.5))


def test_depth_is_along_the_axis_not_along_the_ray():
    wall = scene()
    wall.box((0, 0, 5.5), (50, 50, 0.5), (0.5, 0.5, 0.5))
    _, depth = render(wall, AHEAD, 24, 32)
    np.testing.assert_allclose(depth, 5.0, rtol=1e-5)  # a ray's length would be 6.9 m in the corners


def test_ground_depth_follows_the_pinhole_formula():
    ground = scene()
    ground.box((0, -1, 0), (1000, 1, 1000), (0.3, 0.3, 0.3))
    _, depth = render(ground, AHEAD, 40, 40)
    rows = np.arange(40)
    slope = (20 - rows - 0.5) * 2 * np.tan(AHEAD.fov / 2) / 40
    np.testing.assert_allclose(depth[20:], np.repeat((1 / -slope[20:])[:, None], 40, axis=1), rtol=1e-4)
    assert np.isinf(depth[:20]).all()


def test_ellipsoid_is_hit_where_its_equation_says():
    ball = scene()
    ball.ball((0, 1, 6), (1, 1, 2), (0.5, 0.5, 0.5))
    _, depth = render(ball, AHEAD, 65, 65)
    assert depth[32, 32] == pytest.approx(4.0, rel=1e-5)
    hit = np.isfinite(depth)
    points = AHEAD.rays(65, 65).reshape(65, 65, 3)[hit] * depth[hit][:, None] + np.array([0, 1, 0])
    inside = ((points - [0, 1, 6]) / [1, 1, 2]) ** 2
    np.testing.assert_allclose(inside.sum(axis=1), 1, atol=2e-4)


def test_turned_camera_and_turned_box_agree():
    """A box turned with the camera about the camera's own axis looks the same."""
    angle, straight, turned = 0.7, scene(), scene()
    straight.box((0.5, 1, 4), (1, 0.5, 0.5), (0.5, 0.5, 0.5))
    x, z = 0.5 * np.cos(angle) + 4 * np.sin(angle), 4 * np.cos(angle) - 0.5 * np.sin(angle)
    turned.box((x, 1, z), (1, 0.5, 0.5), (0.5, 0.5, 0.5), yaw=angle)
    _, expected = render(straight, AHEAD, 32, 32)
    _, depth = render(turned, AHEAD._replace(yaw=angle), 32, 32)
    hit = np.isfinite(expected)
    assert hit.sum() > 50
    assert (np.isfinite(depth) == hit).mean() > 0.99
    both = hit & np.isfinite(depth)
    np.testing.assert_allclose(depth[both], expected[both], rtol=1e-3)


def test_pitch_looks_up_and_yaw_looks_right():
    middle = AHEAD._replace(pitch=0.3, yaw=0.4).rays(3, 3)[4]
    np.testing.assert_allclose(middle, [np.cos(0.3) * np.sin(0.4), np.sin(0.3), np.cos(0.3) * np.cos(0.4)], atol=1e-6)


def test_the_nearest_surface_wins_and_throws_a_shadow():
    lit = Scene(light=(0.0, 1.0, 0.0), ambient=0.3)
    lit.box((0, -1, 0), (100, 1, 100), (0.5, 0.5, 0.5))
    bright, _ = render(lit, AHEAD._replace(pitch=-0.5), 32, 32)
    lit.box((0, 3, 3), (1, 0.1, 1), (0.5, 0.5, 0.5))
    dark, _ = render(lit, AHEAD._replace(pitch=-0.5), 32, 32)
    assert (dark < 0.6 * bright).all(axis=2).mean() > 0.1


def test_texture_fades_with_distance():
    """A checker far smaller than a pixel must not alias into noise."""
    floor = scene()
    floor.box((0, -1, 0), (1000, 1, 1000), (0.5, 0.5, 0.5), texture=CHECKER, scale=0.3)
    color, _ = render(floor, AHEAD, 64, 64)
    assert color[60].std() > 4 * color[34].std()
