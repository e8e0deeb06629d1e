"""Answers of classifiers as HTML: a card per model for one picture, a row per picture for many."""

import html
from collections.abc import Sequence
from pathlib import Path

from ..cards import small_copy
from ..classify import Answer

_SIDE = 64  # pixels of a thumbnail in the table


def cards(answers: Sequence[Answer]) -> str:
    """A card per model with a bar per class."""
    return '<div class="cards">' + "".join(_card(answer) for answer in answers) + "</div>"


def table(files: Sequence[Path], rows: Sequence[Sequence[Answer]]) -> str:
    """A row per picture: its thumbnail, and the most probable class by the base and by each adapter, side by side."""
    models = "".join(f"<th>{html.escape(answer.model)}</th>" for answer in rows[0])
    lines = "".join(
        f"<tr><td>{_thumbnail(file)}</td>" + "".join(f"<td>{_best(answer)}</td>" for answer in answers) + "</tr>"
        for file, answers in zip(files, rows, strict=True)
    )
    return f'<div class="answers" tabindex="0"><table><tr><th>picture</th>{models}</tr>{lines}</table></div>'


def _thumbnail(file: Path) -> str:
    source, name = small_copy(file, _SIDE, _SIDE), html.escape(file.name)
    return (f'<img src="{source}" alt="">' if source else "") + f"<span>{name}</span>"


def _best(answer: Answer) -> str:
    name, share = answer.classes[0]
    return f"<b>{html.escape(name)}</b> {_bar(share)}<span>{100 * share:.1f} %</span>"


def _card(answer: Answer) -> str:
    lines = [
        f'<li><span class="name">{html.escape(name)}</span>{_bar(share)}<span class="share">{100 * share:.1f} %</span></li>'
        for name, share in answer.classes
    ]
    return f'<section class="card"><h3>{html.escape(answer.model)}</h3><ol>{"".join(lines)}</ol></section>'


def _bar(share: float) -> str:
    return f'<span class="bar"><i style="width:{100 * share:.1f}%"></i></span>'
