"""The code in README.md and docs/*.md: fenced blocks with their markers, and the words in backticks."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS = {
    "network",
    "gpu",
    "time",
    "data",
    "server",
}  # data: files of the reader's own; server: starts one, or talks to it


@dataclass(frozen=True)
class Block:
    """A fenced block. ``needs``: why the tests do not run it, from the comment ``<!-- needs: … -->`` in front of it."""

    page: Path
    line: int
    language: str
    needs: frozenset[str]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, opened, marker, lines = [], None, "", []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = re.fullmatch(r"\s*```(.*)", line)
        if opened is not None:
            if fence:
                found.append(Block(page, opened[0], opened[1], _needs(marker), "\n".join(lines)))
                opened, marker = None, ""
            else:
                lines.append(line)
        elif fence:
            opened, lines = (number, fence[1].strip()), []
        elif line.strip():
            marker = line
    return found


def _needs(marker: str) -> frozenset[str]:
    match = re.fullmatch(r"\s*<!-- needs: (.*) -->\s*", marker)
    return frozenset(part.strip() for part in match[1].split(",")) if match else frozenset()


def outside_blocks(page: Path) -> str:
    """The page's text without its fenced blocks."""
    return re.sub(r"^\s*```.*?^\s*```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
