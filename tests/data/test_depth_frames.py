import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onelora_vision.data.depth.caps import CAPS, Caps, caps_by_name, counted, crop_mask
from onelora_vision.data.depth.frames import (
    DepthFrame,
    FilePair,
    FrameFiles,
    make_frame,
    read_depth,
    read_hdf5,
    read_mask,
)
from onelora_vision.errors import InputError
from onelora_vision.plots.depth import save_depth_png


def frame(depth, name: str = "d.png") -> DepthFrame:
    depth = np.asarray(depth, np.float32)
    return make_frame(np.zeros((*depth.shape, 3), np.uint8), depth, name, "i.png")


def test_pairs_come_back_as_they_were():
    pairs = [
        FilePair(Path("/data/a.png"), Path("/data/a.npy")),
        FilePair(Path("b.png"), Path("depth/b.png"), 1 / 256, Path("/data/b_mask.npy")),
    ]
    found = FrameFiles(pairs).pairs
    assert list(found) == pairs and found[-1] == pairs[1] and type(found[0].image) is type(pairs[0].image)
    assert list(pickle.loads(pickle.dumps(found))) == pairs


def test_only_positive_finite_depth_is_valid():
    made = frame([[1, 0, -2], [np.nan, np.inf, 3]])
    np.testing.assert_array_equal(made.valid, [[True, False, False], [False, False, True]])


def test_sizes_must_agree():
    with pytest.raises(InputError, match=r"d\.npy: the depth is 3x2 pixels, but its image i\.png is 4x5"):
        make_frame(np.zeros((5, 4, 3)), np.ones((2, 3)), "d.npy", "i.png")
    with pytest.raises(InputError, match=r"d\.npy: the depth is 3x2 pixels, but its mask is 2x3"):
        make_frame(np.zeros((2, 3, 3)), np.ones((2, 3)), "d.npy", "i.png", np.ones((3, 2)))


@pytest.mark.parametrize("content", [b"", b"junk", b"\x89PNG\r\n\x1a\n junk"])
@pytest.mark.parametrize("suffix", [".png", ".npy", ".npz"])
@pytest.mark.parametrize("reader", [read_depth, read_mask])
def test_unreadable_depth_files_are_named(tmp_path, content, reader, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"broken{suffix}: cannot be read") as caught:
        reader(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="absent"):
        reader(tmp_path / f"absent{suffix}")


def test_pickled_arrays_are_refused(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"evil\.npy: cannot be read"):
        read_depth(tmp_path / "evil.npy")


def test_a_truncated_png_is_refused(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 65536, (64, 64), dtype=np.uint16)).save(path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match=r"cut\.png: cannot be read"):
        read_depth(path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("grey.png", np.full((4, 4), 7, np.uint8), "depth needs 16 bits or more, this has 8"),
        ("grey.tiff", np.full((4, 4), 7, np.uint8), "depth needs 16 bits or more, this has 8"),
        ("color.png", np.zeros((4, 4, 3), np.uint8), "depth has one channel"),
        ("grey.jpg", np.full((4, 4), 7, np.uint8), "JPEG does not keep values as they are"),
        ("grey.webp", np.zeros((4, 4, 3), np.uint8), "WEBP does not keep values as they are"),
        ("bytes.npy", np.full((4, 4), 7, np.uint8), "depth needs 16 bits or more, this has 8"),
        ("mask.npy", np.ones((4, 4), bool), "depth needs 16 bits or more, this has 8"),
        ("flat.npy", np.ones(4), r"depth has one channel and the shape \(height, width\), this is \(4,\)"),
    ],
)
def test_pictures_that_are_no_depth_are_refused(tmp_path, name, array, message):
    path = tmp_path / name
    np.save(path, array) if path.suffix == ".npy" else Image.fromarray(array).save(path)
    with pytest.raises(InputError, match=f"{name}: {message}"):
        read_depth(path)
    if path.suffix in (".jpg", ".webp"):  # a mask that is not zero where it should be
        with pytest.raises(InputError, match="does not keep values"):
            read_mask(path)


def test_an_archive_of_two_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.ones((2, 2)), b=np.ones((2, 2)))
    with pytest.raises(InputError, match=r"two\.npz: .*holds 2 arrays"):
        read_depth(tmp_path / "two.npz")


def test_whole_numbers_are_millimetres_and_floats_metres_unless_the_data_set_says_otherwise(tmp_path):
    np.save(tmp_path / "whole.npy", np.array([[2500]], np.uint16))
    np.save(tmp_path / "float.npy", np.array([[2.5]]))
    Image.fromarray(np.array([[2500]], np.uint16)).save(tmp_path / "whole.png")
    save_depth_png(tmp_path / "ours.png", np.array([[2.5]], np.float32))
    for name in ("whole.npy", "float.npy", "whole.png", "ours.png"):
        assert read_depth(tmp_path / name) == pytest.approx(np.array([[2.5]]))
    assert read_depth(tmp_path / "whole.png", 1 / 256) == pytest.approx(np.array([[2500 / 256]]))
    assert read_depth(tmp_path / "float.npy", 0.5) == pytest.approx(np.array([[1.25]]))


def test_float_tiff_is_read_exactly(tmp_path):
    values = np.random.default_rng(1).uniform(0, 90, (5, 7)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "d.tiff")
    np.testing.assert_array_equal(read_depth(tmp_path / "d.tiff"), values)


def test_hdf5_without_the_array_is_refused(tmp_path):
    import h5py

    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file["other"] = np.ones((2, 2))
    with pytest.raises(InputError, match=r"d\.hdf5: cannot read 'dataset'"):
        read_hdf5(tmp_path / "d.hdf5", "dataset")


def test_a_missing_mask_is_named(tmp_path):
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "i.png")
    np.save(tmp_path / "d.npy", np.ones((2, 2)))
    files = FrameFiles([FilePair(tmp_path / "i.png", tmp_path / "d.npy", 1.0, tmp_path / "m.npy")])
    with pytest.raises(InputError, match=r"m\.npy: no such"):
        files[0]


def test_caps_keep_what_lies_between_them():
    np.testing.assert_array_equal(
        counted(frame([[0.5, 1, 2, 10, 11]]), Caps(1, 10))[0], [False, True, True, True, False]
    )


@pytest.mark.parametrize(
    ("depth", "caps", "message"),
    [
        (
            [[1200, 4500]],
            Caps(1e-3, 10),
            r"d\.png: all depths, 1200 to 4500 m, lie beyond the cap of 10 m: is the scale",
        ),
        ([[0.0001, 0.0002]], Caps(1e-3, 10), r"d\.png: all depths lie below the cap of 0.001 m"),
        ([[0, np.nan]], Caps(1e-3, 10), r"d\.png: no valid depth pixel \(none is positive"),
        ([[0.5, 20]], Caps(1, 10), r"d\.png: no valid depth pixel inside the crop 'none' and the caps 1-10 m"),
    ],
)
def test_frames_without_a_pixel_that_counts_say_why(depth, caps, message):
    with pytest.raises(InputError, match=message):
        counted(frame(depth), caps)


def test_crops_are_the_published_ones():
    eigen = crop_mask("nyu_eigen", 480, 640)
    assert eigen[45, 41]
    assert eigen[470, 600]
    assert eigen.sum() == (471 - 45) * (601 - 41)
    garg = crop_mask("garg", 352, 1216)
    rows, columns = np.nonzero(garg)
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (143, 349, 43, 1172)
    rows, columns = np.nonzero(crop_mask("kitti_eigen", 352, 1216))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (117, 321, 43, 1172)
    with pytest.raises(InputError, match="defined for 640x480 pixels, not for 320x240"):
        crop_mask("nyu_eigen", 240, 320)
    with pytest.raises(InputError, match="no crop 'grag'; did you mean 'garg'"):
        crop_mask("grag", 10, 10)


def test_caps_by_name():
    assert caps_by_name("kitti") == Caps(1e-3, 80.0, "garg")
    assert all(crop_mask(caps.crop, 480, 640).any() for caps in CAPS.values())
    with pytest.raises(InputError, match="did you mean 'kitti'"):
        caps_by_name("kiti")
