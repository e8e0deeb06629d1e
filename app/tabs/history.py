"""The history of drawings: restore one by a click, star, delete, compare, and show it as a command."""

from collections.abc import Callable
from pathlib import Path

import gradio as gr

from ..history import Kept
from ..restore import read_settings
from ..sessions import Session
from ..studio import Studio
from .adapters import AdapterPanel
from .common import QUICK, compared, hint, toast, toasts

EMPTY = hint("Drawings are kept here. Click one, and its settings and adapters come back.")


def build_history(
    studio: Studio,
    panel: AdapterPanel,
    page: gr.Blocks,
    settings: list,
    drawn: list,
    results: list,
    take: Callable[[Session, Path], list],
) -> None:
    """Lay the strip out and connect it.

    Args:
        settings: the widgets of the settings; take: their values from a picture, whose adapters it enables.
        drawn: the events after which there may be a new drawing. results: what shows it: a text, two galleries, and the comparison.
    """
    said, strip, tools, star, delete, command, compare = _build_strip()
    names, chosen = gr.State([]), gr.State([])  # of the strip; and of the two that were clicked last
    asked = gr.State("")  # the drawing that the next click on Delete deletes

    def session_of(request: gr.Request) -> Session:
        return studio.session(request.session_hash)

    def listed(request: gr.Request) -> list:
        session = session_of(request)
        found = session.history.shown()
        pictures = [(str(studio.shown(session, one.sheet)), _caption(one)) for one in found]
        count = f"{len(found)} drawings. Click one, and its settings and adapters come back." if found else ""
        strips = gr.update(value=pictures, visible=bool(found), selected_index=None)
        return [hint(count) if found else EMPTY, strips, [one.name for one in found]]

    @toasts(studio, "Not restored")
    def choose(
        known: list[str], before: list[str], version: int, changed: int, event: gr.SelectData, request: gr.Request
    ):
        session = session_of(request)
        kept = session.history.get(known[event.index])
        values = take(session, kept.first)
        two = [*[name for name in before if name != kept.name and name in known][-1:], kept.name]
        pair = [str(studio.shown(session, session.history.get(name).sheet)) for name in two]
        slider = gr.update(value=tuple(pair), visible=True) if len(pair) == 2 else gr.update(visible=False)
        text = gr.update(value=studio.command(session, kept), visible=True)
        # a Delete that was pressed once was about the drawing before
        shown = [gr.update(visible=True), _star(kept), text, slider, gr.update(value="Delete"), ""]
        captions = read_settings(session, kept.first).request.captions()
        galleries = [
            [(str(studio.shown(session, kept.folder / name)), caption) for name, caption in zip(part, captions)]
            for part in kept.parts()
        ]
        said, both = hint(f"From the history: {kept.text}"), compared(studio.pair(session, kept))
        return [two, version + 1, changed + 1, *shown, said, *galleries, both, *values]

    @toasts(studio, "Not changed")
    def starred(two: list[str], request: gr.Request):
        kept = session_of(request).history.star(two[-1] if two else None)
        return [_star(kept), *listed(request)]

    @toasts(studio, "Not deleted")
    def deleted(two: list[str], about: str, request: gr.Request):
        name = two[-1] if two else None
        if name != about:
            session_of(request).history.get(name)
            toast(gr.Warning, "Delete it?", "Its files are deleted: press the button again.")
            return [gr.skip(), name, gr.update(value="Delete for good"), *[gr.skip()] * 6]
        session_of(request).history.remove(name)
        hidden = gr.update(visible=False)
        return [two[:-1], "", gr.update(value="Delete"), hidden, hidden, hidden, *listed(request)]

    strips, options = [said, strip, names], {"api_visibility": "private", **QUICK}
    page.load(listed, None, strips, **options)
    for event in drawn:
        event.then(listed, None, strips, **options)
    state = [panel.version, panel.changed]
    shown = [tools, star, command, compare, delete, asked]
    strip.select(choose, [names, chosen, *state], [chosen, *state, *shown, *results, *settings], **options)
    star.click(starred, chosen, [star, *strips], **options)
    delete.click(deleted, [chosen, asked], [chosen, asked, delete, tools, command, compare, *strips], **options)


def _build_strip() -> tuple:
    """The widgets: text, strip, row of buttons, its two buttons, command, comparison."""
    with gr.Accordion("History", open=False, elem_id="history"):
        said = gr.HTML(EMPTY, elem_id="history-said")
        strip = gr.Gallery(
            show_label=False, allow_preview=False, interactive=False, columns=8, height="auto", object_fit="contain",
            elem_id="history-strip", elem_classes=["drawn", "strip"], visible=False, buttons=[],
        )  # fmt: skip
        with gr.Row(visible=False) as tools:
            star = gr.Button("Star", size="sm", min_width=80, elem_id="history-star")
            delete = gr.Button("Delete", size="sm", min_width=80, elem_id="history-delete")
        command = gr.Textbox(
            label="As a command",
            lines=2,
            interactive=False,
            buttons=["copy"],
            visible=False,
            elem_id="history-command",
        )
        compare = gr.ImageSlider(
            label="The one before | this one: drag the line", type="filepath", format="png", visible=False,
            elem_id="history-compare", elem_classes="drawn",
        )  # fmt: skip
    return said, strip, tools, star, delete, command, compare


def _caption(kept: Kept) -> str:
    *_, mix = kept.text.rstrip(".").split(", ", 2)
    return ("★ " if kept.starred else "") + mix


def _star(kept: Kept) -> dict:
    return gr.update(value="Take the star away" if kept.starred else "Star")
