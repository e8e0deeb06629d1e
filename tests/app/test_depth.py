"""Depth in the app besides single maps: colours, inverse depth, points in space, strips, and many pictures."""

import json
import struct
import zipfile

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from app.depth_maps import COLORS, Estimate, Look, draw_maps
from app.points import MAX_POINTS, to_points, write_glb
from app.runs import State
from app.studio import Studio
from onelora_vision.errors import InputError


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    return Studio(root=tmp_path_factory.mktemp("studio"))


@pytest.fixture
def session(studio, request):
    return studio.session(request.node.name)


@pytest.fixture
def estimate():
    """A wall at 2 m, and behind the adapter's one at 2 to 8 m."""
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return Estimate(
        image, np.full((20, 30), 2.0, np.float32), np.linspace(2, 8, 600, dtype=np.float32).reshape(20, 30), True
    )


def colors_of(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize("name", COLORS)
def test_both_maps_have_the_chosen_colours_on_one_scale(estimate, tmp_path, name):
    maps = draw_maps(tmp_path, estimate, Look(name))
    first, last = ((np.asarray(colormaps[name](end)[:3]) * 255 + 0.5).astype(int) for end in (0.0, 1.0))
    assert np.array_equal(colors_of(maps.plain_base)[5, 5], first)
    assert np.array_equal(colors_of(maps.plain_adapted)[-1, -1], last)
    assert maps.text.startswith("base 2.00 to 2.00 m") and "difference 0.00 to 6.00 m" in maps.text


def test_inverse_depth_turns_the_colours_and_leaves_the_metres(estimate, tmp_path):
    plain, inverse = (draw_maps(tmp_path / str(on), estimate, Look("gray", inverse=on)) for on in (False, True))
    near, far = (colors_of(maps.plain_adapted)[0, 0, 0] for maps in (plain, inverse))
    assert (near, far) == (0, 255) and plain.text == inverse.text
    middle = colors_of(inverse.plain_adapted)[10, 0, 0] / 255
    expected = (1 / estimate.adapted[10, 0] - 1 / 8) / (1 / 2 - 1 / 8)
    assert middle == pytest.approx(expected, abs=0.01)
    files = [np.asarray(Image.open(maps.millimetres)) for maps in (plain, inverse)]
    assert np.array_equal(*files) and files[0].max() == 8000


def test_relative_depth_is_inverse_already(estimate, tmp_path):
    relative = Estimate(estimate.image, estimate.base, estimate.adapted, False)
    plain, inverse = (draw_maps(tmp_path / str(on), relative, Look(inverse=on)) for on in (False, True))
    assert np.array_equal(colors_of(plain.plain_adapted), colors_of(inverse.plain_adapted))
    assert plain.millimetres is None and " m" not in plain.text


def test_unknown_colours_are_named():
    with pytest.raises(InputError, match="colour map 'spectral'; did you mean 'Spectral'"):
        Look("spectral")


def test_other_colours_need_no_other_estimate(studio, session, monkeypatch):
    first = studio.depth.estimate(session, studio.depth_example)
    monkeypatch.setattr("app.depth.estimate_depth", lambda *args: pytest.fail("estimated again"))
    again = studio.depth.draw_again(session, studio.depth_example, Look("magma"))
    assert again.text == first.text
    assert not np.array_equal(colors_of(first.plain_adapted), colors_of(again.plain_adapted))
    assert np.array_equal(np.asarray(Image.open(first.millimetres)), np.asarray(Image.open(again.millimetres)))


def test_points_lie_where_a_pinhole_camera_saw_them():
    depth = np.full((3, 4), 2.0, np.float32)
    depth[0, 0] = np.nan
    image = np.zeros((3, 4, 3), np.uint8)
    image[2, 3] = 255
    places, colors = to_points(image, depth, 90)
    assert places.shape == colors.shape == (11, 3)
    assert np.allclose(places[:, 2], -2) and np.allclose(places[-1], [1.5 / 2 * 2, -1 / 2 * 2, -2])
    assert colors[-1].tolist() == [1, 1, 1] and not colors[:-1].any()
    many = np.ones((900, 1200), np.float32)
    assert len(to_points(np.zeros((900, 1200, 3), np.uint8), many, 60)[0]) <= MAX_POINTS
    for angle in (5, 179, float("nan")):
        with pytest.raises(InputError, match="field of view"):
            to_points(image, depth, angle)


def test_the_glb_says_what_is_in_it(tmp_path):
    places, colors = np.arange(15, dtype=np.float32).reshape(5, 3), np.full((5, 3), 0.5, np.float32)
    data = write_glb(tmp_path / "p.glb", places, colors).read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data)) and length % 4 == 0
    size, kind = struct.unpack_from("<I4s", data, 12)
    said, rest = json.loads(data[20 : 20 + size]), data[20 + size :]
    assert kind == b"JSON" and struct.unpack_from("<I4s", rest) == (120, b"BIN\0")
    values = np.frombuffer(rest[8:], "<f4").reshape(10, 3)
    assert np.array_equal(values[:5], places) and np.allclose(values[5:], 0.2140, atol=1e-3)  # linear, not sRGB
    position, color = said["accessors"]
    assert position["min"] == [0, 1, 2] and position["max"] == [12, 13, 14] and color["count"] == 5
    assert [view["byteOffset"] for view in said["bufferViews"]] == [0, 60]


def test_points_come_of_the_last_estimate_and_need_metres(studio, session, monkeypatch):
    first = studio.depth.points(session, studio.depth_example, 60)
    assert first.suffix == ".glb" and first.stat().st_size > 192 * 192 * 24
    with pytest.raises(InputError, match="choose a picture"):
        studio.depth.points(studio.session("nothing estimated"), None, 60)
    monkeypatch.setattr("app.depth.Estimate.load", lambda path: Estimate(None, None, None, False))
    with pytest.raises(InputError, match="depth without scale, and points need metres"):
        studio.depth.points(session, studio.depth_example, 60)


def test_a_strip_has_every_strength_and_leaves_the_mix(studio, session):
    session.set("streets-depth", False, 0.3)
    session.set("handwriting-vit", True, 0.3)
    enabled = set(session.enabled)
    strip = Image.open(studio.depth.strip(session, "streets-depth", studio.depth_example, Look()))
    assert strip.width > 500
    answers = studio.classifier.strip(session, "handwriting-vit", studio.digit_examples[0])
    assert session.enabled == enabled and session.weight("streets-depth") == session.weight("handwriting-vit") == 0.3
    session.set("handwriting-vit", True, 1.0)
    assert [answer.model for answer in answers] == [f"strength {w}" for w in ("−1", "−0.5", "0", "0.5", "1", "1.5")]
    assert answers[4].classes == studio.classifier.classify(session, studio.digit_examples[:1])[0][1].classes
    assert answers[0].classes != answers[4].classes
    for strip_of in (
        lambda: studio.depth.strip(session, "streets-depth", None, Look()),
        lambda: studio.classifier.strip(session, "handwriting-vit", None),
    ):
        with pytest.raises(InputError, match="choose a picture"):
            strip_of()


def pictures(folder, *names):
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), (90 * number, 0, 0)).save(folder / name)
    return [folder / name for name in names]


def test_many_pictures_are_maps_and_a_zip(studio, session, tmp_path):
    files = pictures(tmp_path, "a.png", "b/a.png", "c.jpg")
    batch = studio.depth.estimate_many(session, files, Look())
    states = [next(batch)]
    for _ in range(20):  # as many other answers as come while the batch is under way
        session.output()
    *others, end = batch
    states += others
    assert [state.done for state in states] == [0, 1, 2] and not any(state.archive for state in states)
    assert end.state is State.FINISHED and [one.caption for one in end.pictures] == ["a", "a-2", "c"]
    with zipfile.ZipFile(end.archive) as archive:
        names = set(archive.namelist())
        assert names == {f"{name}_{kind}.png" for name in ("a", "a-2", "c") for kind in ("base", "adapted", "depth")}
        with archive.open("c_depth.png") as file:
            stored = np.asarray(Image.open(file))
    alone = studio.depth.estimate(session, files[2])
    assert np.array_equal(stored, np.asarray(Image.open(alone.millimetres)))


def test_a_broken_picture_among_many_is_left_out_and_named(studio, session, tmp_path):
    files = pictures(tmp_path, "a.png", "b.png", "c.png")
    files[1].write_bytes(b"no picture")
    *_, end = studio.depth.estimate_many(session, files, Look())
    assert [one.caption for one in end.pictures] == ["a", "c"] and end.total == 2
    (refused,) = end.refused
    assert refused.startswith("b.png: cannot be read as an image") and str(tmp_path) not in refused


def test_no_pictures_too_many_and_none_that_can_be_read_are_refused_at_once(studio, session, tmp_path, monkeypatch):
    monkeypatch.setattr("app.depth.estimate_depth", lambda *args: pytest.fail("estimated"))
    files = pictures(tmp_path, "a.png")
    files[0].write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"none of 2 pictures can be read: a\.png: cannot be read as an image"):
        list(studio.depth.estimate_many(session, files * 2, Look()))
    with pytest.raises(InputError, match="choose pictures first"):
        list(studio.depth.estimate_many(session, [], Look()))
    with pytest.raises(InputError, match="33 pictures: at most 32"):
        list(studio.depth.estimate_many(session, files[:1] * 33, Look()))


def test_cancelled_ones_leave_nothing(studio, session, tmp_path):
    batch = studio.depth.estimate_many(session, pictures(tmp_path, "a.png", "b.png", "c.png"), Look())
    assert [next(batch).done for _ in range(2)] == [0, 1]
    session.depths.cancel()
    (end,) = batch
    assert end.state is State.CANCELLED and not end.pictures and end.archive is None
    assert not list(session.folder.rglob("*.zip"))
