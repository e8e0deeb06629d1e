import re

import pytest

from onelora_vision.data.synthetic.arithmetic import LARGEST, counted_stories, counted_story, plain_sum, retold_story
from onelora_vision.metrics.answers import final_number


@pytest.mark.parametrize("make", [plain_sum, counted_story])
def test_sums_and_differences_are_right(make):
    signs = set()
    for seed in range(200):
        query, response = make(seed)
        a, sign, b, result, answer = re.fullmatch(
            r"(\d+) ([+-]) (\d+) = (\d+)\. The answer is: (\d+)", response
        ).groups()
        signs.add(sign)
        assert int(result) == int(answer) == int(a) + int(sign + b) >= 0
        assert (
            sorted(map(int, re.findall(r"\d+", query))) == sorted([int(a), int(b)]) and max(int(a), int(b)) <= LARGEST
        )
        assert final_number(response) == int(answer)
    assert signs == {"+", "-"}


def test_a_retold_story_s_answer_stands_in_it():
    for seed in range(100):
        query, response = retold_story(seed)
        assert str(final_number(response)) in re.findall(r"\d+", query) and "now?" not in query


def test_stories_are_different_and_the_same_each_time():
    stories = counted_stories(300)
    assert len({story.query for story in stories}) == 300 and stories == counted_stories(300)
    assert stories != counted_stories(300, seed=1) and all(story.query.endswith("have now?") for story in stories)
