"""A picture and its depth as points in space, in a binary glTF file (.glb, glTF 2.0)."""

import json
import struct
from pathlib import Path

import numpy as np

from onelora_vision.errors import InputError
from onelora_vision.storage.files import atomic_file

MIN_ANGLE, MAX_ANGLE = 20, 120  # degrees
MAX_POINTS = 120_000
_FLOAT, _POINTS, _ARRAY_BUFFER = 5126, 0, 34962  # names of glTF
_JSON, _BINARY = 0x4E4F534A, 0x004E4942


def to_points(image: np.ndarray, depth: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Positions (N, 3) in metres and colours (N, 3) in [0, 1] of a picture's pixels, of at most `MAX_POINTS`.

    A pinhole camera in the origin looks along -z, x is right, y is up; its axis goes through the picture's middle.

    Args:
        image: (H, W, 3) uint8. depth: (H, W), metres along the axis. angle: width of the view in degrees.

    Raises:
        InputError: an angle that no such camera has.
    """
    if not MIN_ANGLE <= angle <= MAX_ANGLE:
        raise InputError(f"field of view {angle:g}°: must be from {MIN_ANGLE} to {MAX_ANGLE}")
    height, width = depth.shape
    step = max(1, int(np.ceil(np.sqrt(height * width / MAX_POINTS))))
    rows, columns = np.mgrid[0:height:step, 0:width:step]
    far = depth[rows, columns]
    focal = width / 2 / np.tan(np.radians(angle) / 2)
    places = np.stack(
        [(columns + 0.5 - width / 2) / focal * far, (height / 2 - rows - 0.5) / focal * far, -far], axis=-1
    )
    is_known = np.isfinite(far)
    return places[is_known].astype(np.float32), (image[rows, columns][is_known] / 255).astype(np.float32)


def write_glb(path: Path, places: np.ndarray, colors: np.ndarray) -> Path:
    """Write points (N, 3) with sRGB colours (N, 3) in [0, 1] as one glTF mesh of points, not lit."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)  # as glTF has colours
    parts = [np.ascontiguousarray(part, dtype="<f4").tobytes() for part in (places, linear)]
    count = {"componentType": _FLOAT, "count": len(places), "type": "VEC3"}
    views = [
        {"buffer": 0, "byteOffset": number * len(parts[0]), "byteLength": len(part), "target": _ARRAY_BUFFER}
        for number, part in enumerate(parts)
    ]
    limits = {"min": places.min(0).tolist(), "max": places.max(0).tolist()}
    primitive = {"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": _POINTS, "material": 0}
    said = {
        "asset": {"version": "2.0", "generator": "onelora_vision"},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}], "meshes": [{"primitives": [primitive]}],
        "materials": [{"extensions": {"KHR_materials_unlit": {}}}],
        "accessors": [{"bufferView": 0, **count, **limits}, {"bufferView": 1, **count}],
        "bufferViews": views, "buffers": [{"byteLength": sum(map(len, parts))}],
    }  # fmt: skip
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    chunks = [(_JSON, text), (_BINARY, b"".join(parts))]
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 12 + sum(8 + len(data) for _, data in chunks)))
        for kind, data in chunks:
            file.write(struct.pack("<II", len(data), kind) + data)
    return path
