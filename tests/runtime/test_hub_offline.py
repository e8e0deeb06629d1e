"""A hub that cannot be reached is noticed once, before its library tries again and again."""

import socket

import pytest
from huggingface_hub import constants

from onelora_vision.runtime import hub


@pytest.fixture
def asked(monkeypatch):
    """Hosts whose address was asked for; none is found."""
    hosts = []

    def fail(host, port):
        hosts.append(host)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub._look_for_hub.cache_clear()
    yield hosts
    hub._look_for_hub.cache_clear()


def test_a_hub_out_of_reach_leaves_its_cache(asked, caplog):
    hub.expect_hub("user/model")
    hub.expect_hub("user/other")
    assert constants.HF_HUB_OFFLINE and len(asked) == 1
    assert "cannot be reached: only files that were downloaded before are found" in caplog.text


def test_a_path_asks_for_nothing(asked, tmp_path):
    hub.expect_hub(tmp_path)
    assert not asked and not constants.HF_HUB_OFFLINE


def test_a_proxy_may_know_the_address(asked, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:8080")
    hub.expect_hub("user/model")
    assert not asked and not constants.HF_HUB_OFFLINE
