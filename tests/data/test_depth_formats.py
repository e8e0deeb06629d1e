"""Each format is written to disk as its makers do, and read back to exact metres."""

import json

import h5py
import numpy as np
import pytest
from data_layouts import save_image, save_png16, write_diode, write_kitti, write_nyu_frame, write_nyu_mat

from onelora_vision.data.depth.formats import FORMATS, open_frames
from onelora_vision.data.depth.hypersim import FOCAL_PIXELS
from onelora_vision.errors import InputError

RNG = np.random.default_rng(0)


def picture(height: int = 6, width: int = 8) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_nyu_mat_with_its_split(tmp_path):
    images = np.stack([picture(480, 640) for _ in range(3)])
    depths = RNG.uniform(0.7, 9.9, (3, 480, 640)).astype(np.float32)
    path = str(write_nyu_mat(tmp_path, images, depths, train=[0, 2], test=[1]))
    train, test = open_frames("nyu", path, "train"), open_frames("nyu", path, "test")
    assert (len(train), len(test)) == (2, 1)
    np.testing.assert_array_equal(train[1].image, images[2])
    np.testing.assert_array_equal(train[1].depth, depths[2])
    np.testing.assert_array_equal(test[0].depth, depths[1])
    assert test[0].valid.all()
    assert len(open_frames("nyu", path, "all")) == 3
    with pytest.raises(InputError, match="no valNdxs"):
        open_frames("nyu", path, "val")


def test_nyu_folders_hold_millimetres(tmp_path):
    pixels, metres = picture(), np.array([[0, 1234], [9999, 500]])
    write_nyu_frame(tmp_path / "test/kitchen", 45, pixels[:2, :2], metres, "png")
    (frame,) = open_frames("nyu", str(tmp_path), "test")
    np.testing.assert_array_equal(frame.image, pixels[:2, :2])
    np.testing.assert_allclose(frame.depth, [[0, 1.234], [9.999, 0.5]], rtol=1e-6)
    np.testing.assert_array_equal(frame.valid, [[False, True], [True, True]])


def test_nyu_by_a_split_file(tmp_path):
    save_image(tmp_path / "kitchen/a.png", picture())
    save_png16(tmp_path / "kitchen/d.png", np.full((6, 8), 2500))
    (tmp_path / "list.txt").write_text("/kitchen/a.png /kitchen/d.png 518.8\n\n")
    (frame,) = open_frames("nyu", str(tmp_path), "train", str(tmp_path / "list.txt"))
    np.testing.assert_allclose(frame.depth, 2.5)


def test_kitti_by_its_eigen_list_and_crop(tmp_path):
    pixels, values = picture(375, 1242), RNG.integers(0, 80 * 256, (375, 1242))
    write_kitti(tmp_path, "test", [pixels], [values])
    (frame,) = open_frames("kitti", str(tmp_path), "test")
    np.testing.assert_array_equal(frame.image, pixels[23:, 13:1229])
    np.testing.assert_allclose(frame.depth, values[23:, 13:1229] / 256, rtol=1e-7)
    np.testing.assert_array_equal(frame.valid, values[23:, 13:1229] > 0)


def test_diode_takes_its_mask(tmp_path):
    folder = tmp_path / "val/outdoor/scene_1/scan_1"
    depth, mask = RNG.uniform(2, 60, (6, 8, 1)).astype(np.float32), np.ones((6, 8), np.float32)
    mask[0], depth[0] = 0, np.nan
    write_diode(folder, "1", picture(), depth, mask)
    (frame,) = open_frames("diode_outdoor", str(tmp_path), FORMATS["diode_outdoor"].eval_split)
    np.testing.assert_array_equal(frame.depth[1:], depth[1:, :, 0])
    np.testing.assert_array_equal(frame.valid, mask > 0)


def test_hypersim_distances_become_z_depth(tmp_path):
    """A wall square to the camera: its distances grow towards the corners, its depth is 4 m everywhere."""
    height, width = 12, 16
    x, y = np.arange(width) + 0.5 - width / 2, np.arange(height)[:, None] + 0.5 - height / 2
    focal = FOCAL_PIXELS * width / 1024
    distance = (4 * np.sqrt(1 + (x**2 + y**2) / focal**2)).astype(np.float16)
    distance[3, 3] = np.nan
    images = tmp_path / "train/ai_001_001/images"
    save_image(images / "scene_cam_00_final_preview/frame.0000.tonemap.jpg", picture(height, width))
    (images / "scene_cam_00_geometry_hdf5").mkdir()
    with h5py.File(images / "scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5", "w") as file:
        file["dataset"] = distance
    (frame,) = open_frames("hypersim", str(tmp_path), "train")
    np.testing.assert_allclose(frame.depth[frame.valid], 4, rtol=1e-3)
    assert distance.astype(np.float32)[0, 0] > 4.2
    assert not frame.valid[3, 3]
    assert frame.valid.sum() == height * width - 1


def test_vkitti2_holds_centimetres(tmp_path):
    frames = tmp_path / "Scene20/clone/frames"
    save_image(frames / "rgb/Camera_0/rgb_00001.jpg", picture(2, 2))
    save_png16(frames / "depth/Camera_0/depth_00001.png", np.array([[150, 8000], [65535, 1]]))
    (frame,) = open_frames("vkitti2", str(tmp_path), "Scene20")
    np.testing.assert_allclose(frame.depth, [[1.5, 80], [655.35, 0.01]], rtol=1e-6)
    assert len(open_frames("vkitti2", str(tmp_path), "all")) == 1


def test_jsonl_with_scale_mask_and_split(tmp_path):
    save_image(tmp_path / "a.png", picture())
    save_png16(tmp_path / "a_depth.png", np.full((6, 8), 3000))
    save_image(tmp_path / "mask.png", np.eye(6, 8, dtype=np.uint8) * 255)
    np.savez(tmp_path / "b.npz", np.full((6, 8), 7.5, np.float64))
    lines = [
        {"image": "a.png", "depth": "a_depth.png", "scale": 0.001, "mask": "mask.png", "split": "test"},
        {"image": "a.png", "depth": "b.npz"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = open_frames("jsonl", str(tmp_path), "test")
    np.testing.assert_allclose(first.depth, 3.0)
    np.testing.assert_array_equal(first.valid, np.eye(6, 8) > 0)
    np.testing.assert_array_equal(second.depth, 7.5)
    assert len(open_frames("jsonl", str(tmp_path / "metadata.jsonl"), "train")) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: expected an object"),
        ('{"image": "a.png", "dpeth": "b.npy"}', "unknown key 'dpeth'; did you mean 'depth'"),
        ('{"image": "a.png"}', "'depth' must be the path"),
        ('{"image": "a.png", "depth": "b.npy", "scale": 0}', "'scale' is 0, but must be a number above 0"),
        ('{"image": "a.png", "depth": "b.npy", "scale": NaN}', "'scale' is nan"),
        ('{"image": "a.png", "depth": "b.npy", "mask": 1}', "'mask' must be the path"),
        ("", "found no frames"),
    ],
)
def test_bad_jsonl_lines_are_named(tmp_path, line, message):
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(InputError, match=message) as caught:
        open_frames("jsonl", str(tmp_path), "train")
    assert "metadata.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rendered_scenes_are_data_sets_too():
    assert [len(open_frames("streets", None, split)) for split in ("train", "validation", "test")] == [400, 200, 200]


@pytest.mark.parametrize(
    ("name", "message"),
    [("nyuu", "did you mean 'nyu'"), ("nyu", "needs its folder"), ("kitti", "needs its folder")],
)
def test_unknown_names_and_missing_folders(name, message):
    with pytest.raises(InputError, match=message):
        open_frames(name, None, "test")


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if "data_dir" not in row.ignores])
def test_an_empty_folder_is_told_what_was_expected(tmp_path, name):
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError) as caught:
        open_frames(name, str(tmp_path), "test")
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(InputError, match=r"no such|cannot be read"):
        open_frames(name, str(tmp_path / "nowhere"), "test")


def test_lists_that_name_no_depth_are_refused(tmp_path):
    (tmp_path / "eigen_train_files_with_gt.txt").write_text("image.png\n")
    with pytest.raises(InputError, match="names no depth file"):
        open_frames("kitti", str(tmp_path), "train")
    with pytest.raises(InputError, match="names no depth file"):
        open_frames("nyu", str(tmp_path), "train", str(tmp_path / "eigen_train_files_with_gt.txt"))
    with pytest.raises(InputError, match=r"split file .*absent\.txt: cannot be read"):
        open_frames("nyu", str(tmp_path), "train", str(tmp_path / "absent.txt"))
