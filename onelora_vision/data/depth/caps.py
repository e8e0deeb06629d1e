"""The pixels that count in evaluation and training: caps in metres and crops of each benchmark, by name."""

from typing import NamedTuple

import numpy as np

from onelora_vision.data.depth.frames import DepthFrame
from onelora_vision.errors import InputError, nearest


class Caps(NamedTuple):
    """Depths count if they are in [near, far] metres and, in evaluation, inside the named crop."""

    near: float
    far: float
    crop: str = "none"


#: The published protocols (ZoeDepth's and Depth Anything v2's configurations).
CAPS = {
    "nyu": Caps(1e-3, 10.0, "nyu_eigen"),
    "kitti": Caps(1e-3, 80.0, "garg"),
    "kitti_eigen": Caps(1e-3, 80.0, "kitti_eigen"),
    "diode_indoor": Caps(1e-3, 10.0),
    "diode_outdoor": Caps(1e-3, 80.0),
    "hypersim": Caps(1e-3, 20.0),
    "vkitti2": Caps(1e-3, 80.0),
    "rooms": Caps(0.5, 10.0),
    "streets": Caps(2.0, 80.0),
}

# (top, bottom, left, right) as fractions of height and width.
_GARG = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
_KITTI_EIGEN = (0.3324324, 0.91351351, 0.0359477, 0.96405229)
CROPS = ("none", "nyu_eigen", "garg", "kitti_eigen")


def caps_by_name(name: str) -> Caps:
    """The caps of a protocol. Raises `InputError` if ``name`` is not in `CAPS`."""
    if name not in CAPS:
        raise InputError(f"there are no caps named {name!r}{nearest(name, CAPS)}")
    return CAPS[name]


def crop_mask(crop: str, height: int, width: int) -> np.ndarray:
    """The mask of the pixels inside a crop, (height, width) bool.

    "nyu_eigen": rows 45:471, columns 41:601 of 480 x 640 (Eigen et al. 2014). "garg": the KITTI crop of Garg et al.
    2016. "kitti_eigen": the KITTI crop of Eigen et al. 2014. The last two are relative to the picture's size.

    Raises:
        InputError: the crop is unknown, or not defined for this size.
    """
    mask = np.zeros((height, width), bool)
    if crop == "none":
        mask[:] = True
    elif crop == "nyu_eigen":
        if (height, width) != (480, 640):
            raise InputError(
                f"the crop nyu_eigen is defined for 640x480 pixels, not for {width}x{height}: use crop none"
            )
        mask[45:471, 41:601] = True
    elif crop in ("garg", "kitti_eigen"):
        top, bottom, left, right = _GARG if crop == "garg" else _KITTI_EIGEN
        mask[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
    else:
        raise InputError(f"there is no crop {crop!r}{nearest(crop, CROPS, 'crop')}")
    return mask


def counted(frame: DepthFrame, caps: Caps) -> np.ndarray:
    """The mask (H, W) of a frame's pixels that count. Raises an `InputError` that names the file if none does."""
    valid = frame.valid & (frame.depth >= caps.near) & (frame.depth <= caps.far)
    if caps.crop != "none":
        valid &= crop_mask(caps.crop, *frame.depth.shape)
    if not valid.any():
        raise InputError(f"{frame.name}: {_why_empty(frame, caps)}")
    return valid


def _why_empty(frame: DepthFrame, caps: Caps) -> str:
    known = frame.depth[frame.valid]
    if not known.size:
        return "no valid depth pixel (none is positive and finite inside the mask): leave this frame out"
    if known.min() > caps.far:
        return (
            f"all depths, {known.min():.4g} to {known.max():.4g} m, lie beyond the cap of {caps.far:g} m: "
            "is the scale wrong (millimetres need 0.001), or --max_depth too small?"
        )
    if known.max() < caps.near:
        return f"all depths lie below the cap of {caps.near:g} m (largest {known.max():.4g} m): is the scale wrong?"
    return f"no valid depth pixel inside the crop {caps.crop!r} and the caps {caps.near:g}-{caps.far:g} m"
