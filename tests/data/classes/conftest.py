import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path):
    """Ten images in each of three class folders, whose red value is the image's number."""
    for name in ("cat", "dog", "Äffchen"):
        for number in range(10):
            path = tmp_path / "animals" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return tmp_path / "animals"
