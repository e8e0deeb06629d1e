from pathlib import Path

from benchmarks import methods
from onelora_vision.methods.names import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "methods-table.md"


def test_the_page_has_every_method_and_is_made_by_the_command(tmp_path):
    rows = [line.split("|")[1].strip(" `") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert rows == list(METHODS)
    assert PAGE.read_text().startswith(methods.HEAD)


def test_a_row_is_what_was_tried(tmp_path):
    found = methods.main(["--quick", "--output", str(tmp_path / "table.md")])
    lines = PAGE.read_text().splitlines()
    for line in methods.markdown(found).splitlines()[2:]:
        assert line in lines


def test_a_method_that_cannot_merge_says_so():
    assert methods.try_method(METHODS["lily"])["merges"] == "no"
