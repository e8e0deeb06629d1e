"""A Markdown extension: formulas, written as TeX between dollars, become MathML when the documentation is built.

Browsers draw MathML themselves, so that a page needs no script and nothing from elsewhere. GitHub draws the dollars.
"""

import html
import re

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor

# What pymdownx.arithmatex leaves of $…$ and $$…$$.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\\\[(.+?)\\\]</div>', re.DOTALL)


class _ToMathML(Postprocessor):
    def run(self, text: str) -> str:
        text = _INLINE.sub(lambda found: convert(html.unescape(found[1])), text)
        return _BLOCK.sub(lambda found: convert(html.unescape(found[1]).strip(), display="block"), text)


class Formulas(Extension):
    """What turns arithmatex's formulas into MathML."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.postprocessors.register(_ToMathML(md), "formulas", 0)  # after arithmatex has put them back


def makeExtension(**settings: object) -> Formulas:
    return Formulas(**settings)
