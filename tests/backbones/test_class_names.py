import pytest
from timm.data import ImageNetInfo

from onelora_vision.backbones.class_names import match_classes

INFO = ImageNetInfo()  # reads four files each time it is made
IMAGENET = [INFO.index_to_description(number) for number in range(1000)]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("ice_cream", 928),
        ("hot_dog", 934),
        ("Hot-Dogs", 934),
        ("pizza", 963),
        ("guacamole", 924),
        ("strawberries", 949),
        ("house finches", 12),
        ("sunglass", 836),
        ("sunglasses", 837),
        ("potters wheel", 739),
        ("maillot", 638),  # the whole name of one class, a synonym of another
    ],
)
def test_classes_are_found_by_any_of_their_names(name, row):
    assert match_classes([name], IMAGENET).rows == {name: row}


@pytest.mark.parametrize("name", ["crane", "Cranes", "Cardigan", "panther", "Crayfish"])
def test_ambiguous_names_are_not_taken(name):
    assert match_classes([name], IMAGENET) == ({}, [name])


@pytest.mark.parametrize(
    "name", ["red", "pie", "dog", "mouse", "screen", "panda", "ice", "crane (bird)", "waffles", "steak", "cream"]
)
def test_parts_of_names_and_false_friends_are_not_taken(name):
    assert match_classes([name], IMAGENET) == ({}, [])


def test_a_row_is_taken_by_one_class_alone():
    found = match_classes(["hotdog", "hot dog", "pizza"], IMAGENET)
    assert found.rows == {"pizza": 963} and found.ambiguous == ["hot dog", "hotdog"]
    assert found.describe(IMAGENET) == (
        "1 of them known to the base: pizza from 'pizza, pizza pie'; "
        "not taken, as their names are ambiguous: hot dog, hotdog"
    )


def test_brackets_accents_and_single_letters():
    names = ["drake (bird, male), duck", "crème brûlée", "A", "が"]
    assert match_classes(["duck", "Creme_Brulee"], names).rows == {"duck": 0, "Creme_Brulee": 1}
    assert match_classes(["male", "drake", "a", "か"], names) == ({}, [])
    assert match_classes(["A", "が"], names).rows == {"A": 2, "が": 3}
