import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from onelora_vision.data import paths as module
from onelora_vision.data.paths import Paths

NAMES = ["/data/a/1.png", "/data/b/2.png", "/data/a/ü.png", "3.png", "a/4", os.fsdecode(b"/data/\xff/5.png"), "/6", ""]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_paths_come_back_as_they_were(monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    found = Paths(iter(NAMES))
    assert len(found) == 8 and list(found) == NAMES and found == NAMES and found != NAMES[:-1]
    assert found[-2] == "/6" and found[np.int64(1)] == NAMES[1]
    assert pickle.loads(pickle.dumps(found)) == found
    assert Paths([Path("/data/a/1.png")])[0] == "/data/a/1.png" and not len(Paths())
    with pytest.raises(IndexError):
        found[8]


def test_some_of_the_paths_share_the_names():
    found = Paths(NAMES)
    taken = found.take(np.array([4, 0, 0]))
    assert taken == ["a/4", "/data/a/1.png", "/data/a/1.png"] and taken._names is found._names
    assert sorted(taken.folders) == ["/data/a/", "a/"]
    assert taken.moved(lambda folder: f"/x{os.sep}") == ["/x/4", "/x/1.png", "/x/1.png"]


def test_a_path_takes_ten_bytes_and_its_name():
    found = Paths(f"/data/{number % 10}/{number:06}" for number in range(1000))
    assert sum(part.nbytes for part in (found._folder, found._start, found._length)) == 10_000
    assert len(found._names) == 6000
