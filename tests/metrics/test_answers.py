from fractions import Fraction

import pytest

from onelora_vision.metrics.answers import final_number, same_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7. The answer is: 7", 7),
        ("The answer is: 1\nNo. The answer is: 2 of 5", 2),
        ("so it is 12, then 13.", 13),
        ("The answer is: $1,234.50.", Fraction("1234.5")),
        ("The answer is: -3/4", Fraction(-3, 4)),
        ("The answer is: .5", Fraction(1, 2)),
        ("The answer is: x 7 then 8", 7),
        ("no number", None),
        ("7. The answer is: nothing", None),
        ("The answer is: 1/0", None),
        ("", None),
    ],
)
def test_the_number_that_an_answer_ends_in(text, number):
    assert final_number(text) == number


def test_equal_numbers_are_the_same_however_they_are_written():
    assert same_number("The answer is: 0.50", "1/2") and same_number("it is 1,000.", "The answer is: 1000")
    assert not same_number("none", "none") and not same_number("3", "4")
