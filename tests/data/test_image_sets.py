import numpy as np
import pytest
import torch
from PIL import Image

from onelora_vision.data.image_sets import ImageSet, write_npz
from onelora_vision.errors import InputError


def test_a_folder_and_an_npz_of_the_same_images_are_alike(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (5, 6, 8, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        (tmp_path / "set" / "deep").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "set" / "deep" / f"{index}.png")
    write_npz(tmp_path / "set.npz", pixels, np.arange(5))
    assert np.load(tmp_path / "set.npz")["arr_1"].tolist() == [0, 1, 2, 3, 4]
    folder, archive = ImageSet(tmp_path / "set"), ImageSet(tmp_path / "set.npz")
    first, second = (list(images.batches(2)) for images in (folder, archive))
    assert [len(batch) for batch in first] == [2, 2, 1] and len(folder) == len(archive) == 5
    assert torch.equal(torch.cat(first), torch.cat(second))
    assert torch.equal(torch.cat(first), torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255)
    assert len(folder.hashes) == 5 and len(archive.hashes) == 1


def test_images_of_unlike_sizes_come_in_batches_of_their_own(tmp_path):
    for index, size in enumerate([(4, 4), (4, 4), (6, 4), (4, 4)]):
        Image.new("RGB", size).save(tmp_path / f"{index}.png")
    assert [tuple(batch.shape) for batch in ImageSet(tmp_path).batches(9)] == [
        (2, 3, 4, 4),
        (1, 3, 4, 6),
        (1, 3, 4, 4),
    ]


def test_what_is_no_set_of_images_is_named(tmp_path):
    with pytest.raises(InputError, match="no images there"):
        ImageSet(tmp_path)
    with pytest.raises(InputError, match="gone"):
        ImageSet(tmp_path / "gone")
    with pytest.raises(InputError, match=r"gone\.npz: no such file"):
        ImageSet(tmp_path / "gone.npz")
    np.savez(tmp_path / "floats.npz", np.zeros((2, 4, 4, 3)))
    with pytest.raises(InputError, match="arr_0 is float64"):
        ImageSet(tmp_path / "floats.npz")
    np.savez(tmp_path / "objects.npz", np.array([{}]))
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("objects", "text"):
        with pytest.raises(InputError, match=f"{name}.npz: cannot be read"):
            ImageSet(tmp_path / f"{name}.npz")
