"""Settings from a browser's storage: only what a setting can be is taken."""

import pytest

from app.kept import Choice, Number, Switch, Texts, accepted

KINDS = {"steps": Number(1, 100, whole=True), "rate": Number(0, 1), "on": Switch(), "map": Choice(["a", "b"])}
KINDS["classes"] = Texts(2, 5)
GOOD = {"steps": 7, "rate": 0.5, "on": True, "map": "b", "classes": ["x", "y"]}


def test_good_values_come_back_and_unknown_ones_do_not():
    assert accepted({**GOOD, "path": "/etc/passwd"}, KINDS) == GOOD
    assert accepted({"steps": 7.0}, KINDS) == {"steps": 7.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0), ("steps", 101), ("steps", 2.5), ("steps", "7"), ("steps", True), ("steps", None),
        ("rate", float("nan")), ("rate", float("inf")), ("rate", -1), ("rate", [0.5]), ("rate", 10**400),
        ("on", 1), ("on", "true"), ("map", "c"), ("map", ["a"]), ("map", {}),
        ("classes", "xy"), ("classes", ["x", "y", "z"]), ("classes", ["longer"]), ("classes", [1]), ("classes", None),
    ],
)  # fmt: skip
def test_a_value_that_a_setting_cannot_have_is_passed_by(name, value):
    assert accepted({**GOOD, name: value}, KINDS) == {key: good for key, good in GOOD.items() if key != name}


@pytest.mark.parametrize("said", [None, "", [], 3, {"x": 1}])
def test_what_is_no_settings_changes_nothing(said):
    assert accepted(said, KINDS) == {}
