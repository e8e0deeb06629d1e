import contextlib

import pytest

from onelora_vision.backbones.base import OwnParts
from onelora_vision.errors import InputError
from onelora_vision.tasks.retention import Retention, own_rows


class Base:
    """A base that notes when its own parts are in place."""

    are_own = False

    @contextlib.contextmanager
    def with_own_parts(self, own):
        assert own.class_names == ["a"]
        self.are_own = True
        yield
        self.are_own = False


def test_metrics_are_of_the_base_with_its_own_parts_and_have_names_of_their_own():
    base = Base()
    measured = Retention(base, OwnParts({}, class_names=["a"]), "how", "x", lambda accelerator: {"top1": base.are_own})
    assert measured(None) == {"retention_top1": True} and not base.are_own


def test_the_classes_of_the_old_data_are_found_by_name_else_by_order():
    known = ["tench, Tinca tinca", "goldfish", "great white shark"]
    assert own_rows(["goldfish", "tench"], known, 3) == [1, 0]
    assert own_rows(["n01440764", "n01443537", "n01484850"], known, 3) == [0, 1, 2]
    assert own_rows(["x", "y"], None, 2) == [0, 1]
    for names, own in ((["goldfish", "cat"], known), (["n01440764"], known), (["x"], None)):
        with pytest.raises(InputError, match="--retention: the base's 3 classes do not include"):
            own_rows(names, own, 3)
    with pytest.raises(InputError, match="this base has no head"):
        own_rows(["x"], None, 0)
