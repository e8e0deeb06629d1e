"""The notebook runs, and its outputs are those of the text that it is made from.

python -m pytest -m slow tests/docs/test_notebook.py
"""

import importlib.util
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("make_quickstart", ROOT / "docs" / "notebooks" / "make_quickstart.py")
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)


def test_the_notebook_is_what_its_source_makes_and_has_outputs():
    book = nbformat.read(made.NOTEBOOK, 4)
    assert [cell.source for cell in book.cells] == [cell.source for cell in made.notebook().cells]
    shown = [cell for cell in book.cells if cell.cell_type == "code" and cell.get("outputs")]
    assert len(shown) >= 6 and made.NOTEBOOK.stat().st_size < 1e6
    assert sum("image/png" in output.get("data", {}) for cell in shown for output in cell.outputs) == 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_notebook_runs():
    made.run(made.notebook())
