"""Formulas of the documentation are MathML when it is built."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
markdown = pytest.importorskip("markdown")
pytest.importorskip("latex2mathml")


@pytest.fixture
def convert(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    yield lambda text: markdown.markdown(
        text,
        extensions=["tables", "pymdownx.arithmatex", "docs.formulas"],
        extension_configs={"pymdownx.arithmatex": {"generic": True}},
    )
    sys.modules.pop("docs.formulas", None)


def test_dollars_become_mathml(convert):
    page = convert("With $W_0 x < 1$ it costs 5 $.\n\n$$\n\\sum_i x_i\n$$\n")
    assert page.count("<math ") == 2 and 'display="block"' in page and "arithmatex" not in page
    assert "<msub><mi>W</mi><mn>0</mn></msub>" in page and "it costs 5 $." in page


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_every_formula_of_the_pages_is_one(convert, path):
    assert "arithmatex" not in convert(path.read_text(encoding="utf-8"))
