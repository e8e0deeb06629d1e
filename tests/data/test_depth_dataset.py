import numpy as np
import pytest
import torch

from onelora_vision.data.depth.caps import Caps
from onelora_vision.data.depth.dataset import DepthDataset, InputSize, resized_image
from onelora_vision.data.depth.frames import make_frame
from onelora_vision.data.stream import SampleRef
from onelora_vision.errors import InputError

CAPS = Caps(0.5, 50.0)


def frames(height: int = 12, width: int = 20, count: int = 2) -> list:
    """Frames whose red and green tell a pixel's column and row, and whose depth is column + 100 * row, metres / 100."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([columns * 10, rows * 10, columns * 0], axis=2).astype(np.uint8)
    depth = (columns + 1 + 100 * rows) / 10
    return [make_frame(image, depth, f"d{i}.npy", f"i{i}.png") for i in range(count)]


def test_evaluation_keeps_the_truth_and_resizes_the_picture():
    sample = DepthDataset(frames(), CAPS, InputSize.parse(16, 8))[0]
    assert sample["image"].shape == (3, 16, 24)  # 16 x 26.7, to whole patches
    assert sample["image"].dtype == torch.float32
    np.testing.assert_array_equal(sample["valid"], (frames()[0].depth >= 0.5) & (frames()[0].depth <= 50))
    np.testing.assert_array_equal(
        sample["depth"][sample["valid"]], torch.from_numpy(frames()[0].depth)[sample["valid"]]
    )
    assert (sample["depth"][~sample["valid"]] == 0).all()
    assert sample["path"] == "d0.npy"


def test_training_cuts_picture_and_depth_alike():
    data = DepthDataset(frames(), CAPS, InputSize.parse(12, 4), train=True, color_jitter=False)
    lefts, mirrored = set(), 0
    for seed in range(30):
        sample = data[SampleRef(0, seed)]
        assert sample["image"].shape == (3, 12, 12)
        assert sample["depth"].shape == (12, 12)
        columns = (sample["image"][0] * 255 / 10).round()
        rows = (sample["image"][1] * 255 / 10).round()
        expected = (columns + 1 + 100 * rows) / 10
        valid = sample["valid"]
        torch.testing.assert_close(sample["depth"][valid], expected[valid])
        mirrored += bool(columns[0, 0] > columns[0, -1])
        lefts.add(columns.min().item())
    assert 5 < mirrored < 25
    assert len(lefts) > 4


def test_training_at_an_exact_size_keeps_the_truths_size():
    data = DepthDataset(frames(), CAPS, InputSize.parse("8x24", 8), train=True)
    sample = data[SampleRef(0, 1)]
    assert sample["image"].shape == (3, 8, 24)
    assert sample["depth"].shape == (12, 20)


def test_samples_depend_on_the_reference_alone():
    data = DepthDataset(frames(), CAPS, InputSize.parse(8, 4), train=True)
    first, again, other = data[SampleRef(0, 7)], data[SampleRef(0, 7)], data[SampleRef(0, 8)]
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["depth"], again["depth"])
    assert not torch.equal(first["image"], other["image"])
    assert first["seed"] == 7


def test_the_crop_is_for_evaluation_alone():
    full = np.full((480, 640), 3.0)
    frame = make_frame(np.zeros((480, 640, 3), np.uint8), full, "d", "i")
    caps = Caps(1e-3, 10.0, "nyu_eigen")
    assert DepthDataset([frame], caps, InputSize.parse("56x56", 14), train=True)[0]["valid"].all()
    assert DepthDataset([frame], caps, InputSize.parse("56x56", 14))[0]["valid"].sum() == 426 * 560


def test_limit_and_length():
    assert len(DepthDataset(frames(count=5), CAPS, InputSize.parse(8, 4), limit=3)) == 3
    assert len(DepthDataset(frames(count=5), CAPS, InputSize.parse(8, 4), limit=30)) == 5


def test_a_batch_of_different_sizes_names_two_files():
    mixed = [frames()[0], make_frame(np.zeros((9, 9, 3), np.uint8), np.ones((9, 9)), "odd.npy", "odd.png")]
    data = DepthDataset(mixed, CAPS, InputSize.parse(8, 4))
    with pytest.raises(InputError, match=r"odd\.npy and d0\.npy are of different sizes \(9x9 and 20x12\)"):
        data.__getitems__([0, 1])


@pytest.mark.parametrize(
    ("resolution", "message"),
    [
        ("8x", "must be a number"),
        ("axb", "must be a number"),
        (0, "must be a number"),
        ("8x8x8", "must be"),
        (-8, "must be"),
    ],
)
def test_resolutions_that_are_none(resolution, message):
    with pytest.raises(InputError, match=message):
        InputSize.parse(resolution, 4)


def test_resolutions_are_whole_patches():
    assert InputSize.parse("392x518", 14) == (392, 518, 14)
    assert InputSize.parse(518, 14).of(480, 640) == (518, 686)
    with pytest.raises(InputError, match="500 is not a multiple of the patch size 14; try 504"):
        InputSize.parse(500, 14)


def test_resizing_leaves_a_picture_of_the_right_size_alone():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resized_image(image, 5, 6), image.astype(np.float32) / 255)
    assert resized_image(image, 10, 12).shape == (10, 12, 3)


def test_the_longer_side_is_bounded():
    size = InputSize.parse(16, 8)
    assert size.of(1, 4000) == (8, 128) and size.of(4000, 1) == (128, 8)
    assert size.of(100, 800) == (16, 128) and size.of(100, 300) == (16, 48)


def test_a_frame_without_depth_is_an_error_or_replaced_by_the_next(caplog):
    given = frames(count=3)
    given[1] = given[1]._replace(valid=given[1].valid & False)
    size = InputSize.parse(16, 8)
    with pytest.raises(InputError, match=r"d1\.npy: no valid depth pixel.*--on_bad_image skip"):
        DepthDataset(given, CAPS, size)[1]
    data = DepthDataset(given, CAPS, size, on_bad_image="skip")
    assert [data[index]["index"] for index in (0, 1, 1, 2)] == [0, 2, 2, 2]
    assert len(caplog.messages) == 1 and "skipped: d1.npy" in caplog.messages[0]
    with pytest.raises(InputError, match="none of its 1 images"):
        DepthDataset(given[1:2], CAPS, size, on_bad_image="skip")[0]


def test_a_limit_keeps_the_first_frames_or_drawn_ones():
    def kept(**options):
        data = DepthDataset(frames(count=9), CAPS, InputSize.parse(8, 4), **options)
        return [data[index]["path"] for index in range(len(data))]

    assert kept(limit=3) == ["d0.npy", "d1.npy", "d2.npy"]
    drawn = kept(limit=3, drawn_by=0)
    assert len(set(drawn)) == 3 and drawn == sorted(drawn) == kept(limit=3, drawn_by=0) != kept(limit=3)
    assert kept(drawn_by=0) == kept() and len(kept(limit=20)) == 9
