import logging
from pathlib import Path

import pytest

from onelora_vision.storage.cache import NoHomeFolder, combined_hash, default_cache, dispensable


def test_combined_hash_keeps_parts_apart():
    assert combined_hash(["ab", "c"]) != combined_hash(["a", "bc"]) != combined_hash(["bc", "a"])


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_cache() == tmp_path / "cache" / "onelora_vision"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "onelora_vision"


def test_a_user_without_a_home_folder_is_a_failure_of_the_cache(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(NoHomeFolder, match="XDG_CACHE_HOME"):
        default_cache()


def test_a_failing_cache_is_one_line_of_warning(caplog):
    with dispensable():
        raise OSError(28, "No space left on device", "/cache")
    ((_, level, message),) = caplog.record_tuples
    assert level == logging.WARNING and message.count("\n") == 0 and "No space left on device" in message
    with pytest.raises(KeyError), dispensable():
        raise KeyError("not a failure of the cache")
