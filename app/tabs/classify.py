"""Classify: the top classes of a picture by the base's head and by each adapter; a table for many pictures."""

import html
from pathlib import Path

import gradio as gr

from onelora_vision.errors import InputError

from ..classify import Answer, table
from ..studio import Studio
from .adapters import AdapterPanel
from .common import MODEL, QUICK, hint, picture_input, toasts
from .strength import build_strengths, is_due

TASK = "classification"
START = hint("Classifying an example …")
EXAMPLE = hint(
    "An example, a handwritten digit. Change the strength, or choose a picture of your own and press Classify."
)


def build_classify(studio: Studio, panel: AdapterPanel, page: gr.Blocks) -> gr.HTML:
    """Lay the tab out and connect it; returns the title of its strengths."""
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            picture = picture_input(elem_id="class-picture", elem_classes="drawn")
            with gr.Row():
                example = gr.Button("Example", elem_id="class-example", min_width=100)
                classify = gr.Button("Classify", variant="primary", elem_id="classify", min_width=100)
        with gr.Column(scale=2, min_width=280):
            strength = build_strengths(studio, panel, TASK)
            answers = gr.HTML(START, elem_id="answers")
    with gr.Accordion("Many pictures: a table", open=False, elem_id="class-batch"):
        many = gr.File(
            label="Pictures", file_count="multiple", file_types=["image"], height=110, elem_id="class-files"
        )
        start = gr.Button("Classify all", elem_id="classify-all")
        found = gr.Dataframe(
            headers=["picture"], label="Most probable class", interactive=False, wrap=True, elem_id="class-table"
        )
    turn = gr.State(0)

    def classify_it(path: str | None, request: gr.Request):
        session = studio.session(request.session_hash)
        rows = studio.classifier.classify(session, [Path(path)] if path else [])
        more = "" if len(rows[0]) > 1 else hint("Enable a classification adapter to compare.")
        return _answers(rows[0]) + more

    @toasts(studio, "Not classified")
    def run(path: str | None, request: gr.Request):
        return classify_it(path, request)

    @toasts(studio, "Not classified")
    def run_all(paths: list[str] | None, request: gr.Request):
        files = [Path(path) for path in paths or []]
        rows = studio.classifier.classify(studio.session(request.session_hash), files)
        headers, cells = table([file.name for file in files], rows)
        return gr.update(value={"headers": headers, "data": cells})

    @toasts(studio, "Not classified")
    def run_again(path: str | None, touched: str, request: gr.Request):
        if not (path and is_due(studio, touched, TASK, request)):
            return gr.skip()
        try:
            return classify_it(path, request)
        except InputError as error:  # nobody asked for it, so it is no reason for a toast
            return hint(studio.public(str(error)))

    @toasts(studio, "No example")
    def show_example():
        return str(studio.examples.digit), _answers(studio.examples.answers()) + EXAMPLE, 1

    def next_example(number: int):
        files = studio.digit_examples
        return str(files[number % len(files)]), number + 1

    classify.click(run, picture, answers, api_visibility="private", **MODEL)
    start.click(run_all, many, found, api_visibility="private", **MODEL)
    hidden = {"api_visibility": "private"}
    panel.touched.change(run_again, [picture, panel.touched], answers, trigger_mode="always_last", **hidden, **MODEL)
    page.load(show_example, None, [picture, answers, turn], **hidden, **QUICK)
    example.click(next_example, turn, [picture, turn], api_visibility="private", **QUICK)
    return strength


def _answers(answers: list[Answer]) -> str:
    """A card per model with a bar per class."""
    return '<div class="cards">' + "".join(_card(answer) for answer in answers) + "</div>"


def _card(answer: Answer) -> str:
    lines = [
        f'<li><span class="name">{html.escape(name)}</span><span class="bar"><i style="width:{100 * share:.1f}%"></i></span>'
        f'<span class="share">{100 * share:.1f} %</span></li>'
        for name, share in answer.classes
    ]
    return f'<section class="card"><h3>{html.escape(answer.model)}</h3><ol>{"".join(lines)}</ol></section>'
