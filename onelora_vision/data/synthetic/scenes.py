"""Rendered rooms and streets with exact z-depth: the built-in source and target domains for metric depth.

A scene is a pure function of (kind, seed). Depth is z-depth in metres, the distance along the camera's axis as in NYU
and KITTI, not the length of the ray. Sky and depths outside ``RANGES`` are invalid.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from onelora_vision.data.depth.frames import DepthFrame
from onelora_vision.data.synthetic.raycast import (
    BRICKS,
    CHECKER,
    LEAVES,
    PLAIN,
    PLANKS,
    ROAD,
    WINDOWS,
    Camera,
    Scene,
    render,
)
from onelora_vision.errors import InputError, nearest
from onelora_vision.seeding import mix

RANGES = {"rooms": (0.5, 10.0), "streets": (2.0, 80.0)}
"""Nearest and farthest valid depth in metres of each kind of scene."""

SPLITS = ("train", "validation", "test")


class RenderedScene(NamedTuple):
    """One picture: ``image`` (H, W, 3) uint8, ``depth`` (H, W) metres (0 where invalid), ``valid`` (H, W) bool."""

    image: np.ndarray
    depth: np.ndarray
    valid: np.ndarray


def render_scene(kind: str, seed: int, height: int = 64, width: int = 64) -> RenderedScene:
    """Render scene number ``seed`` of a kind ("rooms", "streets"), the same at any size and in any process."""
    if kind not in RANGES:
        raise InputError(f"there are no {kind!r} scenes{nearest(kind, RANGES, 'kind')}")
    rng = np.random.default_rng(mix(seed, list(RANGES).index(kind)))
    scene, camera = _room(rng) if kind == "rooms" else _street(rng)
    color, depth = render(scene, camera, height, width)
    near, far = RANGES[kind]
    valid = (depth >= near) & (depth <= far)
    return RenderedScene(_develop(color, rng), np.where(valid, depth, 0).astype(np.float32), valid)


class SceneFrames(Sequence[DepthFrame]):
    """The first ``count`` scenes of a kind in a split ("train", "validation" or "test", which share no scenes).

    A scene is rendered on first access (15 ms on one core) and then kept in memory (32 KB at 64 x 64).
    """

    def __init__(self, kind: str, split: str, count: int, height: int = 64, width: int = 64):
        if split not in SPLITS:
            raise InputError(f"the rendered {kind} have no split {split!r}{nearest(split, SPLITS, 'split')}")
        self.kind, self.split, self.count, self.size = kind, split, count, (height, width)
        self._rendered: dict[int, DepthFrame] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> DepthFrame:
        if not 0 <= index < self.count:
            raise IndexError(index)
        if index not in self._rendered:
            scene = render_scene(self.kind, mix(SPLITS.index(self.split), index), *self.size)
            self._rendered[index] = DepthFrame(*scene, name=f"{self.kind} {self.split} {index}")
        return self._rendered[index]


def _develop(color: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Convert linear colours to a uint8 picture: random exposure and tint, gamma 2.2, and a little sensor noise."""
    exposure = rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3)
    picture = np.clip(color * exposure, 0, 1) ** (1 / 2.2) + rng.normal(0, 0.008, color.shape)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def _color(rng: np.random.Generator, low: float = 0.12, high: float = 0.75, grey: float = 0.4) -> np.ndarray:
    """A random linear colour, pulled towards grey by the fraction ``grey``."""
    color = rng.uniform(low, high, 3)
    return color + grey * (color.mean() - color)


# Rooms -------------------------------------------------------------------------------------------------------------


def _room(rng: np.random.Generator) -> tuple[Scene, Camera]:
    """A furnished room with x in [-w, w], y in [0, height], z in [0, length]. The camera is near the wall z = 0."""
    w, length, height = rng.uniform(1.3, 2.8), rng.uniform(2.8, 8.5), rng.uniform(2.3, 3.2)
    lamp = (rng.uniform(-0.5, 0.5) * w, height - rng.uniform(0.15, 0.5), rng.uniform(0.25, 0.75) * length)
    scene = Scene(light=lamp, lamp=True, ambient=rng.uniform(0.35, 0.55))
    _walls(scene, rng, w, length, height)
    camera = Camera(
        position=(rng.uniform(-0.6, 0.6) * w, rng.uniform(0.9, 1.8), rng.uniform(0.15, 0.5)),
        yaw=np.radians(rng.uniform(-28, 28)),
        pitch=np.radians(rng.uniform(-20, 2)),
        fov=np.radians(rng.uniform(52, 75)),
    )
    taken = [(camera.position[0], camera.position[2], 0.75)]
    for _ in range(rng.integers(4, 10)):
        _furnish(scene, rng, w, length, height, taken)
    return scene, camera


def _walls(scene: Scene, rng: np.random.Generator, w: float, length: float, height: float) -> None:
    """Add floor, ceiling and four walls, with windows, doors and pictures on them."""
    floor = (PLANKS, CHECKER, PLAIN)[rng.integers(3)]
    floor_scale = {PLANKS: rng.uniform(0.12, 0.25), CHECKER: rng.uniform(0.3, 0.6), PLAIN: 1.0}[floor]
    wall, middle = _color(rng, 0.3, 0.85), length / 2
    texture = BRICKS if rng.random() < 0.15 else PLAIN
    scene.box((0, -0.5, middle), (w + 1, 0.5, middle + 1), _color(rng, 0.1, 0.6), texture=floor, scale=floor_scale)
    scene.box((0, height + 0.5, middle), (w + 1, 0.5, middle + 1), np.full(3, rng.uniform(0.6, 0.9)))
    for x in (-w - 0.5, w + 0.5):
        scene.box((x, height / 2, middle), (0.5, height, middle + 1), wall, texture=texture, scale=0.35)
    other = wall if rng.random() < 0.6 else _color(rng, 0.2, 0.8)
    for z in (-0.5, length + 0.5):
        scene.box((0, height / 2, z), (w + 1, height, 0.5), other, texture=texture, scale=0.35)
    for _ in range(rng.integers(2, 6)):
        _on_wall(scene, rng, w, length, height)


def _on_wall(scene: Scene, rng: np.random.Generator, w: float, length: float, height: float) -> None:
    """Add a door, a window or a picture: a thin box on the far wall or a side wall."""
    kind = rng.integers(3)
    half_width, half_height = ((0.45, 1.0), rng.uniform(0.4, 0.8, 2), rng.uniform(0.2, 0.5, 2))[kind]
    middle = half_height if kind == 0 else rng.uniform(1.3, 1.6)
    color = (_color(rng, 0.15, 0.6), rng.uniform(0.8, 1.3) * np.array([0.9, 0.97, 1.0]), _color(rng, 0.05, 0.9, 0.0))[
        kind
    ]
    texture = (PLAIN, PLAIN, CHECKER)[kind]
    middle = min(middle, height - half_height - 0.05)
    if rng.random() < 0.5:
        place, half = (rng.uniform(-0.7, 0.7) * w, middle, length), (half_width, half_height, 0.03)
    else:
        side = rng.choice([-w, w])
        place, half = (side, middle, rng.uniform(0.3, 0.95) * length), (0.03, half_height, half_width)
    scene.box(place, half, color, texture=texture, scale=0.2)


def _furnish(scene: Scene, rng: np.random.Generator, w: float, length: float, height: float, taken: list) -> None:
    """Add a piece of furniture if one of three tries finds free floor; ``taken`` holds circles (x, z, radius)."""
    piece = _PIECES[rng.integers(len(_PIECES))]
    for _ in range(3):
        x, z, radius = rng.uniform(-0.9, 0.9) * w, rng.uniform(0.12, 0.95) * length, 0.55
        if all(np.hypot(x - a, z - b) > radius + r for a, b, r in taken):
            taken.append((x, z, radius))
            yaw = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.15)
            piece(scene, rng, x, z, yaw, height)
            return


def _local(x: float, z: float, yaw: float, right: float, ahead: float) -> tuple[float, float]:
    """World (x, z) of a point given in the frame of a piece of furniture rotated by ``yaw``."""
    return x + right * np.cos(yaw) + ahead * np.sin(yaw), z - right * np.sin(yaw) + ahead * np.cos(yaw)


def _table(scene, rng, x, z, yaw, height) -> None:
    half_x, half_z, top = rng.uniform(0.35, 0.8), rng.uniform(0.3, 0.5), rng.uniform(0.4, 0.8)
    wood = _color(rng, 0.1, 0.6)
    scene.box((x, top, z), (half_x, 0.03, half_z), wood, yaw, PLANKS, 0.15)
    for right in (-1, 1):
        for ahead in (-1, 1):
            a, b = _local(x, z, yaw, right * (half_x - 0.05), ahead * (half_z - 0.05))
            scene.box((a, top / 2, b), (0.035, top / 2, 0.035), wood, yaw)
    if rng.random() < 0.6:
        size = rng.uniform(0.06, 0.16)
        scene.ball((x, top + 0.03 + size, z), (size, size, size), _color(rng, grey=0.0))


def _seat(scene, rng, x, z, yaw, height) -> None:
    """Add a chair with a back or, if wide, a sofa with arms as well."""
    half_x, top = rng.choice([0.24, 0.75]), rng.uniform(0.38, 0.48)
    cloth = _color(rng, grey=0.2)
    scene.box((x, top / 2, z), (half_x, top / 2, 0.3), cloth, yaw)
    a, b = _local(x, z, yaw, 0, 0.27)
    scene.box((a, top + 0.22, b), (half_x, 0.3, 0.07), cloth * 0.9, yaw)
    if half_x > 0.5:
        for right in (-half_x, half_x):
            a, b = _local(x, z, yaw, right, 0)
            scene.box((a, 0.32, b), (0.09, 0.32, 0.32), cloth * 0.95, yaw)


def _cupboard(scene, rng, x, z, yaw, height) -> None:
    half_x, half_y = rng.uniform(0.3, 0.6), rng.uniform(0.35, min(1.0, height / 2 - 0.1))
    texture, scale = ((PLAIN, 1.0), (BRICKS, 0.4), (WINDOWS, 0.4))[rng.integers(3)]
    scene.box((x, half_y, z), (half_x, half_y, rng.uniform(0.2, 0.35)), _color(rng), yaw, texture, scale)


def _bed(scene, rng, x, z, yaw, height) -> None:
    scene.box((x, 0.22, z), (0.6, 0.22, 0.95), _color(rng), yaw)
    a, b = _local(x, z, yaw, 0, 0.75)
    scene.box((a, 0.5, b), (0.5, 0.07, 0.2), np.full(3, 0.85), yaw)
    a, b = _local(x, z, yaw, 0, 1.0)
    scene.box((a, 0.5, b), (0.62, 0.5, 0.05), _color(rng), yaw)


def _floor_lamp(scene, rng, x, z, yaw, height) -> None:
    top = rng.uniform(1.2, 1.7)
    scene.box((x, top / 2, z), (0.02, top / 2, 0.02), _color(rng, 0.05, 0.3))
    scene.ball((x, top, z), (0.18, 0.16, 0.18), (1.3, 1.2, 0.95))


def _plant(scene, rng, x, z, yaw, height) -> None:
    size = rng.uniform(0.2, 0.4)
    scene.box((x, 0.18, z), (0.16, 0.18, 0.16), _color(rng), yaw)
    scene.ball((x, 0.3 + size * 1.2, z), (size, size * 1.4, size), (0.1, rng.uniform(0.2, 0.4), 0.08), LEAVES, 0.25)


def _crate(scene, rng, x, z, yaw, height) -> None:
    half = rng.uniform(0.15, 0.4, 3)
    scene.box((x, half[1], z), half, _color(rng, grey=0.0), yaw, (PLAIN, CHECKER, PLANKS)[rng.integers(3)], 0.15)


def _column(scene, rng, x, z, yaw, height) -> None:
    half = rng.uniform(0.12, 0.22)
    scene.box((x, height / 2, z), (half, height / 2, half), _color(rng, 0.3, 0.8), yaw)


_PIECES = (_table, _table, _seat, _seat, _seat, _cupboard, _cupboard, _bed, _floor_lamp, _plant, _crate, _column)


# Streets -----------------------------------------------------------------------------------------------------------


def _street(rng: np.random.Generator) -> tuple[Scene, Camera]:
    """A road along z with pavements, cars, trees, poles and buildings on both sides, under a sky."""
    half = rng.uniform(2.8, 5.5)
    sun = (rng.uniform(-1, 1), rng.uniform(0.5, 1.4), rng.uniform(-1, 1))
    grey = rng.random() < 0.3
    sky = ((0.75, 0.78, 0.8), (0.55, 0.6, 0.65)) if grey else ((0.72, 0.82, 0.92), (0.2, 0.42, 0.8))
    scene = Scene(
        light=sun,
        ambient=rng.uniform(0.6, 0.85) if grey else rng.uniform(0.3, 0.5),
        haze=rng.uniform(0.001, 0.007),
        sky=sky,
        road=(half, half + rng.uniform(1.0, 2.5)),
    )
    ground = np.array([rng.uniform(0.12, 0.3), rng.uniform(0.25, 0.4), rng.uniform(0.05, 0.12)])
    scene.box((0, -1, 200), (400, 1, 400), ground, texture=ROAD, scale=1.5)
    for side in (-1, 1):
        _roadside(scene, rng, side)
    for _ in range(rng.integers(1, 6)):
        lane = rng.choice([-0.5, 0.5, -0.82, 0.82]) * half
        _car(scene, rng, lane, 7 + rng.uniform(0, 1) ** 1.5 * 55)
    camera = Camera(
        position=(rng.uniform(-0.7, 0.7) * half, rng.uniform(1.2, 2.4), 0.0),
        yaw=np.radians(rng.uniform(-20, 20)),
        pitch=np.radians(rng.uniform(-10, 1)),
        fov=np.radians(rng.uniform(45, 65)),
    )
    return scene, camera


def _roadside(scene: Scene, rng: np.random.Generator, side: int) -> None:
    """Add one side of the road: a row of houses (with or without gaps), with trees, poles and hedges in front."""
    edge = scene.road[1]
    row, z = edge + rng.uniform(0.5, 9), rng.uniform(-4, 12)
    built = rng.uniform(0.2, 1.0)
    while z < 95:
        long = rng.uniform(3, 10)
        if rng.random() < built:
            _house(scene, rng, side * row, side, z + long, long)
        z += 2 * long + rng.choice([0.0, 1.5, 6.0])
    for _ in range(rng.integers(1, 7)):
        _tree(
            scene,
            rng,
            side * (edge + rng.uniform(-0.6, max(row - edge - 0.5, 0.3))),
            4 + rng.uniform(0, 1) ** 1.4 * 65,
        )
    if rng.random() < 0.5:
        spacing, start = rng.uniform(9, 20), rng.uniform(4, 12)
        for k in range(4):
            _pole(scene, side * (edge - 0.5), start + k * spacing)
    if rng.random() < 0.35:
        scene.box(
            (side * (edge + 0.2), 0.5, 30), (0.25, rng.uniform(0.4, 0.9), 25), (0.1, 0.2, 0.06), 0.0, LEAVES, 0.5
        )


def _house(scene, rng, x, side, z, half_long) -> None:
    half_high, deep = rng.uniform(1.8, 8), rng.uniform(3, 6)
    wall = _color(rng, 0.2, 0.8)
    texture, scale = ((WINDOWS, rng.uniform(2.2, 3.2)), (BRICKS, 0.8), (PLAIN, 1.0))[
        rng.choice(3, p=(0.7, 0.15, 0.15))
    ]
    scene.box((x + side * deep, half_high, z), (deep, half_high, half_long), wall, 0.0, texture, scale)
    if rng.random() < 0.6:
        roof = _color(rng, 0.1, 0.4)
        scene.box((x + side * deep, 2 * half_high + 0.15, z), (deep + 0.4, 0.2, half_long + 0.3), roof)


def _tree(scene, rng, x, z) -> None:
    trunk, spread = rng.uniform(1.2, 3.0), rng.uniform(0.8, 2.2)
    green = np.array([rng.uniform(0.05, 0.25), rng.uniform(0.15, 0.35), rng.uniform(0.03, 0.1)])
    scene.ball(
        (x, trunk / 2, z), (0.09 + 0.08 * spread, trunk * 0.9, 0.09 + 0.08 * spread), (0.16, 0.1, 0.06), PLAIN, 0.3
    )
    for _ in range(rng.integers(1, 4)):
        dx, dy, dz = rng.uniform(-0.5, 0.5, 3) * spread
        radii = spread * rng.uniform(0.65, 1.1, 3)
        scene.ball((x + dx, trunk + spread * 0.8 + dy, z + dz), radii, green, LEAVES, 0.8)


def _pole(scene, x, z) -> None:
    scene.box((x, 2.5, z), (0.08, 2.5, 0.08), (0.25, 0.25, 0.27))
    scene.box((x * 0.9, 5.0, z), (abs(x) * 0.1 + 0.1, 0.07, 0.1), (0.3, 0.3, 0.3))


def _car(scene, rng, x, z) -> None:
    """Add a car along the road: a body, a cabin with dark glass and four wheels."""
    paint, yaw = _color(rng, 0.03, 0.8, 0.0), rng.normal(0, 0.04)
    long, wide = rng.uniform(1.8, 2.4), rng.uniform(0.8, 0.95)
    scene.box((x, 0.6, z), (wide, 0.35, long), paint, yaw)
    scene.box((x, 1.2, z + 0.1 * long), (wide * 0.88, 0.28, long * 0.5), (0.05, 0.06, 0.08), yaw)
    scene.box((x, 1.5, z + 0.1 * long), (wide * 0.85, 0.04, long * 0.46), paint, yaw)
    for right in (-wide, wide):
        for ahead in (-0.62 * long, 0.62 * long):
            a, b = _local(x, z, yaw, right * 0.95, ahead)
            scene.ball((a, 0.31, b), (0.12, 0.31, 0.31), (0.02, 0.02, 0.02))
