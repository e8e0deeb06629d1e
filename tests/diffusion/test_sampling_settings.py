import pytest

from onelora_vision.diffusion.settings import SamplingSettings, parse_numbers
from onelora_vision.errors import InputError


def test_numbers_are_read_with_commas_between_them():
    assert parse_numbers("0, 1", "--x", count=2) == (0.0, 1.0)
    assert parse_numbers("2.5", "--x") == (2.5,)


@pytest.mark.parametrize(("text", "count"), [("0.5", 2), ("0,1,2", 2), ("low,high", 2), ("", None), ("1;2", None)])
def test_anything_else_is_one_line_that_names_the_flag(text, count):
    wanted = "2 numbers" if count else "numbers"
    with pytest.raises(InputError, match=f"^--x is {text!r}, but must be {wanted} with a comma between them"):
        parse_numbers(text, "--x", count)


def test_a_record_gives_the_settings_that_wrote_it():
    settings = SamplingSettings("ddim", 7, 2.0, 3, (0.1, 0.9), True)
    record = {**vars(settings), "guidance_interval": [0.1, 0.9], "of_a_later_version": 1}
    assert SamplingSettings.from_record(record) == settings
    assert SamplingSettings.from_record({}) == SamplingSettings()


def test_guidance_from_the_base_is_named_where_it_has_an_effect():
    settings = SamplingSettings(guidance_scale=2.5, guidance_base=True)
    settings.require_effect()
    assert settings.uses_base and settings.guidance_text() == "guidance 2.5 from the base"
    without = SamplingSettings(guidance_scale=1.0, guidance_base=True)
    assert not without.uses_base and without.guidance_text() == "guidance 1"
    with pytest.raises(InputError, match="no effect with Guidance 1: give another scale, or leave it out"):
        without.require_effect("Guidance")
    with pytest.raises(InputError, match="guidance_base='yes': must be true or false"):
        SamplingSettings(guidance_base="yes")
