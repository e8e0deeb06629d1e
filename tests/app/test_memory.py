import ctypes
import sys
import threading

import pytest

from app import memory


def test_memory_is_trimmed_again_and_again(monkeypatch):
    trimmed, three = [], threading.Event()

    class Library:
        @staticmethod
        def malloc_trim(kept):
            trimmed.append(kept)
            if len(trimmed) == 3:
                three.set()
                threading.Event().wait()  # for good

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library)
    thread = memory.trim_regularly(seconds=0.001)
    assert thread.daemon and three.wait(60)
    assert trimmed == [0, 0, 0]


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_another_c_library_is_left_alone(platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert memory.trim_regularly() is None
