"""Strength buttons above a result, and live updates when an adapter's weight changes."""

import html

import gradio as gr

from ..studio import Studio
from .adapters import AdapterPanel, Asked
from .common import QUICK, toasts

#: What the buttons set the weight of the enabled adapters to.
STRENGTHS = {"Base only": 0.0, "Half": 0.5, "Full": 1.0, "Exaggerated": 1.5, "Opposite": -1.0}


def build_strengths(studio: Studio, panel: AdapterPanel, task: str) -> gr.HTML:
    """A row of buttons that set the weight of the task's adapters and update the tab's result.

    Returns its title, for `name_strengths`.
    """
    with gr.Row(elem_classes="strengths", elem_id=f"strengths-{task}"):
        title = gr.HTML(_title([]), padding=False, min_width=120)
        buttons = {
            weight: gr.Button(name, size="sm", min_width=64, scale=0, elem_classes="strength")
            for name, weight in STRENGTHS.items()
        }

    def set_to(weight: float):
        @toasts(studio, "Not changed")
        def change(version: int, changed: int, touched: Asked, request: gr.Request):
            studio.session(request.session_hash).set_strength(task, weight)
            return version + 1, changed + 1, touched.then(task)

        return change

    state = [panel.version, panel.changed, panel.touched]
    for weight, button in buttons.items():
        button.click(set_to(weight), state, state, api_visibility="private", trigger_mode="always_last", **QUICK)
    return title


def name_strengths(studio: Studio, panel: AdapterPanel, page: gr.Blocks, titles: dict[str, gr.HTML]) -> None:
    """Name the adapters that the buttons act on in the title of each row."""

    def name_adapters(request: gr.Request):
        session = studio.session(request.session_hash)
        return [_title([entry.name for entry, _ in session.mix(task).terms]) for task in titles]

    when = [page.load, panel.changed.change]
    gr.on(when, name_adapters, None, list(titles.values()), api_visibility="private", **QUICK)


def is_due(studio: Studio, touched: Asked, task: str, request: gr.Request) -> bool:
    """Whether a tab should update its result: a weight of its task was changed, and its results come quickly."""
    session = studio.session(request.session_hash)
    return touched.task == task and session.pace.is_live(session.mix(task))


def _title(names: list[str]) -> str:
    of = f" of <b>{html.escape(' + '.join(names))}</b>" if names else ""
    return f'<p class="strength-title">Strength{of}</p>'
