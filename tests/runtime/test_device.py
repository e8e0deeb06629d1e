import pytest
import torch

from onelora_vision.errors import InputError
from onelora_vision.runtime.device import choose_device


def test_the_default_is_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == torch.device("cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", "cpu:x"])
def test_a_device_that_is_not_here_is_one_line(name):
    with pytest.raises(InputError, match=f"--device {name}: cannot be used here") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value)
