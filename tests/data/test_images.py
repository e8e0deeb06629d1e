import os
import time

import numpy as np
import pytest
from PIL import Image

from onelora_vision.data import images
from onelora_vision.data.images import list_images, read_image
from onelora_vision.errors import InputError


def corner_colors(picture):
    """RGB of the four corners: top left, top right, bottom left, bottom right."""
    assert picture.mode == "RGB"
    w, h = picture.size
    return [picture.getpixel(place) for place in ((0, 0), (w - 1, 0), (0, h - 1), (w - 1, h - 1))]


def test_exif_rotation_is_applied(tmp_path):
    picture = Image.new("RGB", (4, 2), "black")
    picture.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the stored picture must be turned 90 degrees clockwise
    picture.save(tmp_path / "a.png", exif=exif)
    read = read_image(tmp_path / "a.png")
    assert read.size == (2, 4)
    assert corner_colors(read)[1] == (255, 0, 0)


def test_damaged_exif_data_does_not_cost_the_picture(tmp_path):
    Image.new("RGB", (4, 2), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0garbage that is no TIFF header")
    assert read_image(tmp_path / "a.jpg").size == (4, 2)


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    red, green, blue = corner_colors(read_image(tmp_path / "a.jpg"))[0]
    assert red > 200 and green < 50 and blue < 50


def test_16_bit_gray_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 65535], [257 * 100, 257 * 200]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert corner_colors(read_image(tmp_path / "a.png")) == [(v, v, v) for v in (0, 255, 100, 200)]


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"a\.tiff.*floating-point"):
        read_image(tmp_path / "a.tiff")


def test_transparency_is_laid_on_white(tmp_path):
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 1), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert corner_colors(read_image(tmp_path / "p.png")) == [(255, 255, 255)] * 3 + [(0, 0, 255)]
    Image.new("RGBA", (2, 2), (0, 0, 0, 51)).save(tmp_path / "a.png")
    assert corner_colors(read_image(tmp_path / "a.png"))[0] == (204, 204, 204)
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "la.png")
    assert corner_colors(read_image(tmp_path / "la.png"))[0] == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    red, _, blue = corner_colors(read_image(tmp_path / f"a.{suffix}"))[0]
    assert red > 200 and blue < 50


def test_one_pixel(tmp_path):
    Image.new("1", (1, 1), 1).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_bad_files_are_named_on_one_line(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "webp", "gif"):
        Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "new\nline.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    bad = [p for p in tmp_path.iterdir() if not p.name.startswith("whole")]
    for path in [*bad, tmp_path / "absent.png"]:
        with pytest.raises(InputError) as caught:
            read_image(path)
        assert images.shown(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="empty"):
        read_image(tmp_path / "empty.jpg")


def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match=r"bomb\.png: 400,000,000 pixels, but at most 178,956,970 are read; resize"):
        read_image(tmp_path / "bomb.png")


def test_list_images_is_sorted_recursive_and_knows_images_by_extension(tmp_path):
    names = ["b.JPG", "a.png", "sub/c.webp", "sub/grüße 🍕.jpeg", "n" * 200 + ".png"]
    for name in [*names, "notes.txt", ".hidden.png", ".cache/d.png", "._a.png"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_images(tmp_path) == sorted(str(tmp_path / name) for name in names)


def test_list_images_survives_loops_of_links_and_names_that_are_not_unicode(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "broken.png").symlink_to(tmp_path / "nowhere")
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.png", os.O_CREAT))
    found = list_images(tmp_path)
    assert len(found) == 3
    assert images.shown(found[-1]).endswith("\\udcff.png")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_unreadable_folder_is_named(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(InputError, match=r"closed: folder cannot be read"):
        list_images(tmp_path)
    (tmp_path / "closed").chmod(0o700)


def test_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"folder cannot be read \(Permission denied\)"):
        list_images(tmp_path)


def test_missing_folder_and_file_in_its_place(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        list_images(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a folder"):
        list_images(tmp_path / "file")


@pytest.mark.slow
def test_100_000_files(tmp_path, record_property):
    for folder in range(100):
        (tmp_path / f"{folder:03d}").mkdir()
        for file in range(1000):
            (tmp_path / f"{folder:03d}" / f"{file}.jpg").touch()
    start = time.perf_counter()
    assert len(list_images(tmp_path)) == 100_000
    record_property("seconds", time.perf_counter() - start)
