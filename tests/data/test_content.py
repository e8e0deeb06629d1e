import os

import numpy as np
import pytest
from PIL import Image

from onelora_vision.data import content, known_hashes
from onelora_vision.data.classes.images import ClassImages
from onelora_vision.data.content import content_hash, content_hashes, file_hashes
from onelora_vision.errors import InputError


@pytest.fixture
def files(tmp_path):
    for index in range(3):
        Image.fromarray(np.full((6, 6, 3), 40 * (index % 2), np.uint8)).save(tmp_path / f"{index}.png")
    return [str(tmp_path / f"{index}.png") for index in range(3)]


def test_the_hash_is_of_the_content_alone(files):
    first, second, third = content_hashes(ClassImages(files, [0, 0, 0], ["a"], "set", "train"))
    assert first == third != second and len(first) == 64
    Image.new("RGB", (6, 6), "red").save(files[0])
    assert content_hash(files[0]) != first
    assert content_hash(Image.new("RGB", (6, 6))) != content_hash(Image.new("RGB", (4, 9)))


def test_a_missing_file_stands_for_itself(files):
    source = ClassImages([files[0], files[0] + ".gone"], [0, 0], ["a"], "set", "train")
    hashes = content_hashes(source)
    assert len(set(hashes)) == 2
    with pytest.raises(InputError, match="gone"):
        content_hash(source.images[1])


@pytest.fixture
def kept(files, tmp_path, monkeypatch):
    """Hashes of few and new files are kept, too. Returns what counts the files that are read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "_WORTH_KEEPING", 0)
    monkeypatch.setattr(known_hashes, "_SETTLED_NS", 0)
    monkeypatch.setattr(content, "_VERIFIED", 1)
    read, digest = [], content._digest
    monkeypatch.setattr(content, "_digest", lambda image: read.append(image) or digest(image))
    return read


def ledgers(tmp_path):
    return list((tmp_path / "cache").rglob("*.safetensors"))


def test_files_are_read_once_and_one_of_them_to_verify(files, kept, tmp_path):
    first = file_hashes(files)
    assert sorted(kept) == files and len(ledgers(tmp_path)) == 1
    kept.clear()
    assert list(file_hashes(files)) == list(first) and len(kept) == 1
    kept.clear()
    assert list(file_hashes(files[:2])) == list(first)[:2] and len(kept) == 1  # those of the third are kept
    os.utime(files[0], ns=(1, 1))
    Image.new("RGB", (6, 6), "red").save(files[1])
    kept.clear()
    hashes = file_hashes(files)
    assert {*files[:2]} <= set(kept) and len(kept) == 3
    assert hashes[0] == first[0] and hashes[1] == content_hash(files[1]) != first[1]


def test_a_relative_path_is_the_same_file(files, kept, tmp_path, monkeypatch):
    file_hashes(files)
    kept.clear()
    monkeypatch.chdir(tmp_path)
    file_hashes([os.path.basename(path) for path in files])
    assert len(kept) == 1


def test_hashes_that_are_wrong_are_noticed_and_computed_again(files, kept, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(content, "_VERIFIED", 3)
    first = file_hashes(files)
    ledger = known_hashes.KnownHashes.load(ledgers(tmp_path)[0])
    ledger.digest[1] ^= 255
    ledger.save(ledgers(tmp_path)[0])
    assert list(file_hashes(files)) == list(first) and "all images are hashed again" in caplog.text
    caplog.clear()
    assert list(file_hashes(files)) == list(first) and not caplog.text


def test_a_file_that_may_change_again_within_one_tick_is_not_kept(files, kept, monkeypatch):
    monkeypatch.setattr(known_hashes, "_SETTLED_NS", 10**12)
    file_hashes(files)
    kept.clear()
    file_hashes(files)
    assert sorted(kept) == files


def test_a_missing_or_unreadable_file_is_not_kept(files, kept):
    os.remove(files[0])
    os.mkdir(files[0])
    file_hashes([*files, files[1] + ".gone"])
    kept.clear()
    file_hashes([*files, files[1] + ".gone"])
    assert {files[0], files[1] + ".gone"} < set(kept) and len(kept) == 3


@pytest.mark.parametrize("damage", [b"cut", None])
def test_damaged_ledgers_are_a_warning(files, kept, tmp_path, caplog, damage):
    first = file_hashes(files)
    path = ledgers(tmp_path)[0]
    if damage is None:
        whole = known_hashes.KnownHashes.load(path)
        known_hashes.KnownHashes(whole.path[:1], whole.state, whole.digest).save(path)
    else:
        path.write_bytes(damage)
    assert list(file_hashes(files)) == list(first) and f"{path} is damaged" in caplog.text
    kept.clear()
    assert list(file_hashes(files)) == list(first) and len(kept) == 1


def test_few_small_files_leave_the_cache_alone(files, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file_hashes(files)
    assert not (tmp_path / "cache").exists()


def test_pictures_in_memory_are_hashed_by_their_pixels():
    pictures = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "red")]
    source = ClassImages(pictures, [0] * 3, ["a"], "set", "train")
    assert list(content_hashes(source)) == [content_hash(picture) for picture in pictures]
