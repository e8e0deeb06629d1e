"""A small ray caster in numpy: textured boxes and ellipsoids with one light source, with exact z-depth.

World axes are in metres: x right, y up, z ahead. Every ray's direction has length 1 along the camera's axis, so the ray
parameter of a hit is the z-depth (the distance along the camera's axis, as in NYU and KITTI), not the ray's length.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

PLAIN, CHECKER, PLANKS, BRICKS, WINDOWS, LEAVES, ROAD = range(7)

_NEAR = 0.05  # metres (times the ray's length): closer hits are ignored, so a shadow ray leaves its own surface
_BLOCK = 1024  # rays traced at once, few enough for their data to stay in the CPU cache


class Camera(NamedTuple):
    """A pinhole camera: position in metres, angles in radians; ``fov`` is the vertical field of view."""

    position: tuple[float, float, float]
    yaw: float
    pitch: float
    fov: float

    def rays(self, height: int, width: int, offset: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
        """Ray directions (height * width, 3) through pixel centres, shifted by ``offset`` (right, down) pixels."""
        scale = 2 * np.tan(self.fov / 2) / height
        across = (np.arange(width) + 0.5 + offset[0] - width / 2) * scale
        up = (height / 2 - np.arange(height) - 0.5 - offset[1]) * scale
        x, y = (grid.ravel() for grid in np.meshgrid(across, up))
        sin, cos = np.sin(self.pitch), np.cos(self.pitch)
        y, z = y * cos + sin, cos - y * sin
        sin, cos = np.sin(self.yaw), np.cos(self.yaw)
        return np.stack([x * cos + z * sin, y, z * cos - x * sin], axis=1).astype(np.float32)


@dataclass
class Scene:
    """A scene of boxes and ellipsoids (in this order) with surfaces, one light, and two colours for the sky.

    Attributes:
        light: direction towards the sun or, with ``lamp``, position of the lamp.
        ambient: fraction of light that reaches a shaded surface.
        haze: rate per metre at which colours fade towards the colour of the horizon.
        road: (half width of the road, half width up to the pavement's outer edge) in metres, for the texture ``ROAD``.
    """

    light: tuple[float, float, float]
    lamp: bool = False
    ambient: float = 0.5
    haze: float = 0.0
    sky: tuple = ((0.8, 0.85, 0.9), (0.4, 0.6, 0.9))
    road: tuple[float, float] = (3.5, 5.5)
    boxes: list[tuple] = field(default_factory=list)
    balls: list[tuple] = field(default_factory=list)
    box_surfaces: list[tuple] = field(default_factory=list)
    ball_surfaces: list[tuple] = field(default_factory=list)

    def box(self, center, half, color, yaw: float = 0.0, texture: int = PLAIN, scale: float = 1.0) -> None:
        """Add a box, rotated by ``yaw`` about the vertical; ``half`` is half its size, ``scale`` is for its texture."""
        self.boxes.append((*center, *half, yaw))
        self.box_surfaces.append((*color, texture, scale))

    def ball(self, center, radii, color, texture: int = PLAIN, scale: float = 1.0) -> None:
        """Add an axis-aligned ellipsoid."""
        self.balls.append((*center, *radii))
        self.ball_surfaces.append((*color, texture, scale))

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes (M, 7), ellipsoids (K, 6) and surfaces (M + K, 5), fp32."""
        surfaces = np.array(self.box_surfaces + self.ball_surfaces, np.float32).reshape(-1, 5)
        return (
            np.array(self.boxes, np.float32).reshape(-1, 7),
            np.array(self.balls, np.float32).reshape(-1, 6),
            surfaces,
        )


def render(scene: Scene, camera: Camera, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Render colours (height, width, 3) in [0, 1] and z-depth (height, width) in metres, ``inf`` without a hit.

    The depth is exact for the ray through the pixel's centre. The colour is the mean over two rays.
    """
    arrays = scene.arrays()
    depth, _ = _trace(arrays, camera.position, camera.rays(height, width))
    colors = [_shade(scene, arrays, camera, camera.rays(height, width, offset), height) for offset in _OFFSETS]
    return np.mean(colors, axis=0).reshape(height, width, 3), depth.reshape(height, width)


# Two rays per pixel that share neither row nor column: enough to smooth the worst aliasing at edges.
_OFFSETS = ((-0.25, -0.25), (0.25, 0.25))


def _trace(arrays: tuple, origin, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest hit of each ray: parameter (N,), ``inf`` without a hit, and the primitive's index (N,)."""
    boxes, balls, _ = arrays
    origin = np.asarray(origin, np.float32).reshape(-1, 3)  # one for all rays, or one each
    depth, index = np.empty(len(direction), np.float32), np.empty(len(direction), np.intp)
    for start in range(0, len(direction), _BLOCK):
        rays = slice(start, start + _BLOCK)
        block = origin[rays] if len(origin) > 1 else origin, direction[rays]
        hits = np.concatenate([_box_hits(boxes, *block), _ball_hits(balls, *block)])
        index[rays] = hits.argmin(axis=0)
        depth[rays] = hits.min(axis=0)
    return depth, index


def _box_hits(boxes: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Ray parameters (M, N) of the entries into boxes, ``inf`` for a miss (slab method, Kay and Kajiya 1986)."""
    center, half, yaw = boxes[:, :3], boxes[:, 3:6], boxes[:, 6:]
    near, far = np.float32(-np.inf), np.float32(np.inf)
    local_origin = _turned(*(origin[:, a] - center[:, a : a + 1] for a in range(3)), yaw)
    for axis, along in enumerate(_turned(*direction.T[:, None, :], yaw)):
        inverse = 1 / np.where(np.abs(along) < 1e-9, np.float32(1e-9), along)
        middle, reach = -local_origin[axis] * inverse, half[:, axis : axis + 1] * np.abs(inverse)
        near, far = np.maximum(near, middle - reach), np.minimum(far, middle + reach)
    return np.where((near <= far) & (near > _NEAR), near, np.float32(np.inf))


def _turned(x, y, z, yaw):
    """Convert world vectors to the frames of boxes rotated by ``yaw`` (M, 1)."""
    sin, cos = np.sin(yaw), np.cos(yaw)
    return x * cos - z * sin, y, x * sin + z * cos


def _ball_hits(balls: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Ray parameters (K, N) of the entries into ellipsoids, unit spheres in scaled space; ``inf`` for a miss."""
    a, b, c = 0.0, 0.0, -1.0
    for axis in range(3):
        radius = balls[:, 3 + axis : 4 + axis]
        step, start = direction[:, axis] / radius, (origin[:, axis] - balls[:, axis : axis + 1]) / radius
        a, b, c = a + step * step, b + step * start, c + start * start
    inside = b * b - a * c
    near = (-b - np.sqrt(np.maximum(inside, 0))) / a
    return np.where((inside > 0) & (near > _NEAR), near, np.float32(np.inf))


def _shade(scene: Scene, arrays: tuple, camera: Camera, direction: np.ndarray, height: int) -> np.ndarray:
    """Colours (N, 3) by Lambert's law with hard shadows, ambient light and haze; the sky if nothing is hit."""
    depth, index = _trace(arrays, camera.position, direction)
    up = np.clip(direction[:, 1:2] / np.linalg.norm(direction, axis=1, keepdims=True), 0, 1) ** 0.7
    horizon, zenith = np.array(scene.sky, np.float32)
    color = horizon + (zenith - horizon) * up
    seen = np.isfinite(depth)
    depth, index, direction = depth[seen], index[seen], direction[seen]
    point = np.asarray(camera.position, np.float32) + depth[:, None] * direction
    normal, local = _surface(arrays, point, index)
    footprint = depth * np.float32(2 * np.tan(camera.fov / 2) / height)
    albedo = _albedo(scene, arrays[2][index], point, normal, local, footprint, index)
    light = _light(scene, arrays, point, normal)
    fade = np.exp(-scene.haze * depth)[:, None]
    color[seen] = fade * albedo * light[:, None] + (1 - fade) * horizon
    return color


def _surface(arrays: tuple, point: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outward normals (N, 3) in world coordinates, and positions (N, 3) in each primitive's frame, in metres."""
    boxes, balls, _ = arrays
    normal, local = np.zeros_like(point), np.zeros_like(point)
    on_box = index < len(boxes)
    box = boxes[index[on_box]]
    x, y, z = _turned(*(point[on_box] - box[:, :3]).T, box[:, 6])
    local[on_box] = np.stack([x, y, z], axis=1)
    ratio = local[on_box] / box[:, 3:6]
    face = np.abs(ratio).argmax(axis=1)
    rows = np.arange(len(box))
    flat = np.zeros_like(box[:, :3])
    flat[rows, face] = np.sign(ratio[rows, face])
    normal[on_box] = np.stack(_turned(*flat.T, -box[:, 6]), axis=1)
    ball = balls[index[~on_box] - len(boxes)]
    local[~on_box] = point[~on_box] - ball[:, :3]
    gradient = local[~on_box] / ball[:, 3:6] ** 2
    normal[~on_box] = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
    return normal, local


def _light(scene: Scene, arrays: tuple, point: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Light (N,) at surface points: ambient light (more from above), and the lamp or sun where it is visible."""
    towards = np.asarray(scene.light, np.float32)
    if scene.lamp:
        towards = towards - point
        length = np.linalg.norm(towards, axis=1, keepdims=True)
        strength, far = 1.6 / (1 + 0.12 * length[:, 0] ** 2), 0.98  # fraction of the distance to the lamp
    else:
        towards = np.broadcast_to(towards / np.linalg.norm(towards), point.shape)
        length, strength, far = np.float32(1), np.float32(1), np.finfo(np.float32).max
    facing = np.clip((normal * towards / length).sum(axis=1), 0, 1)
    lit = facing > 0  # surfaces that face away need no shadow ray
    lit[lit] = _trace(arrays, (point + 1e-3 * normal)[lit], towards[lit])[0] > far
    ambient = scene.ambient * (0.85 + 0.15 * normal[:, 1])
    return ambient + (1 - scene.ambient) * strength * facing * lit


def _albedo(scene, surface, point, normal, local, footprint, index) -> np.ndarray:
    """Surface colours (N, 3). A texture fades out where one pixel's ``footprint`` (N,) in metres covers its period."""
    color, texture, scale = surface[:, :3].copy(), surface[:, 3], surface[:, 4]
    face = np.abs(normal).argmax(axis=1)
    across = np.where(face == 0, local[:, 2], local[:, 0])
    along = np.where(face == 1, local[:, 2], local[:, 1])
    u, v = across / scale, along / scale
    fade = np.clip(1.5 - 2.5 * footprint / scale, 0, 1)
    factor = 1 + 0.22 * (_noise(u, v, index) - 0.5) + 0.16 * fade * (_noise(5 * u, 5 * v, index) - 0.5)
    for kind, pattern in _PATTERNS.items():
        chosen = texture == kind
        if chosen.any():
            factor[chosen] *= 1 + fade[chosen] * pattern(u[chosen], v[chosen])
    color *= factor[:, None]
    road = texture == ROAD
    if road.any():
        color[road] = _road(scene, color[road], point[road], footprint[road], factor[road])
    return color


def _checker(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.where((np.floor(u) + np.floor(v)) % 2 == 0, 0.22, -0.22).astype(np.float32)


def _planks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = np.floor(u)
    return 0.35 * (_noise(row, np.floor(v / 5 + 0.37 * row), 7) - 0.5) - 0.3 * (u - row < 0.08)


def _bricks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    row = np.floor(2 * v)
    return -0.3 * ((2 * v - row < 0.15) | ((u + 0.5 * (row % 2)) % 1 < 0.08))


def _windows(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    pane = (np.abs(u % 1 - 0.5) < 0.27) & (np.abs(v % 1 - 0.5) < 0.3)
    return pane * (-0.75 + 0.5 * (_noise(np.floor(u), np.floor(v), 3) > 0.7))


def _leaves(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 1.1 * (_noise(3 * u, 3 * v, 11) - 0.5) + 0.7 * (_noise(9 * u, 9 * v, 13) - 0.5)


_PATTERNS = {CHECKER: _checker, PLANKS: _planks, BRICKS: _bricks, WINDOWS: _windows, LEAVES: _leaves}


def _road(scene: Scene, grass: np.ndarray, point: np.ndarray, footprint: np.ndarray, factor) -> np.ndarray:
    """Colours (N, 3) of the ground: asphalt with a dashed centre line and edge lines, pavements, then grass."""
    x, z = np.abs(point[:, 0]), point[:, 2]
    half, outer = scene.road
    color = np.where((x < outer)[:, None], np.float32([0.62, 0.6, 0.58]) * factor[:, None], grass)
    color[x < half] = np.float32([0.3, 0.3, 0.32]) * factor[x < half, None]
    middle = (x < 0.09) & (z % 6 < 3)
    edge = np.abs(x - half + 0.25) < 0.08
    paint = (middle | edge) * np.clip(0.16 / np.maximum(footprint, 1e-3), 0, 1)
    return color + (0.9 - color) * paint[:, None]


def _noise(u: np.ndarray, v: np.ndarray, salt) -> np.ndarray:
    """Value noise in [0, 1] on the unit lattice, interpolated smoothly."""
    i, j = np.floor(u), np.floor(v)
    s, t = u - i, v - j
    s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
    i, j, salt = i.astype(np.int64), j.astype(np.int64), np.asarray(salt, np.int64)
    low = _hash(i, j, salt) * (1 - s) + _hash(i + 1, j, salt) * s
    high = _hash(i, j + 1, salt) * (1 - s) + _hash(i + 1, j + 1, salt) * s
    return low * (1 - t) + high * t


def _hash(i: np.ndarray, j: np.ndarray, salt: np.ndarray) -> np.ndarray:
    """Hash lattice points to numbers in [0, 1), fp32 (multiply and xor-shift on 32 bits)."""
    n = (i * 374761393 + j * 668265263 + salt * 974634413) & 0xFFFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFFFF).astype(np.float32) / np.float32(1 << 24)
