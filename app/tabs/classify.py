"""Classify: the top classes of a picture by the base's head and by each adapter; a table and a CSV for many pictures."""

from pathlib import Path

import gradio as gr

from onelora_vision.errors import InputError

from ..classify import write_csv
from ..strips import strip_title
from ..studio import Studio
from .adapters import AdapterPanel, Asked
from .answers import cards, table
from .common import (
    MODEL,
    QUICK,
    SHOW_STRIP,
    for_this_picture,
    hint,
    left_out,
    left_out_line,
    on_another_picture,
    picture_input,
    toasts,
)
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
    strip = gr.HTML(visible=False, elem_id="class-strip", elem_classes="of-strengths")
    with gr.Accordion("Many pictures: a table", open=False, elem_id="class-batch"):
        many = gr.File(label="Pictures", file_count="multiple", file_types=["image"], elem_id="class-files")
        start = gr.Button("Classify all", elem_id="classify-all")
        found = gr.HTML(hint("Their answers by the base and by each adapter, side by side."), elem_id="class-table")
        file = gr.DownloadButton("Download the answers (CSV)", interactive=False, elem_id="class-csv")
    turn = gr.State(0)

    def classify_it(path: str | None, request: gr.Request):
        session = studio.session(request.session_hash)
        rows = studio.classifier.classify(session, [Path(path)] if path else [])
        more = "" if len(rows[0]) > 1 else hint("Enable a classification adapter to compare.")
        return cards(rows[0]) + more

    @toasts(studio, "Not classified")
    @for_this_picture(studio, TASK, 2)
    def run(path: str | None, request: gr.Request):
        return classify_it(path, request), gr.update(visible=False)

    @toasts(studio, "No strip")
    @for_this_picture(studio, TASK, 1)
    def show_strip(path: str | None, asked: Asked, request: gr.Request):
        if asked.task != TASK:
            return gr.skip()
        session = studio.session(request.session_hash)
        found = studio.classifier.strip(session, asked.adapter, Path(path) if path else None)
        return gr.update(value=hint(f"{strip_title(asked.adapter)}:") + cards(found), visible=True)

    @toasts(studio, "Not classified")
    def run_all(paths: list[str] | None, request: gr.Request):
        session, files = studio.session(request.session_hash), [Path(path) for path in paths or []]
        files, rows, refused = studio.classifier.classify_readable(session, files)
        left_out(refused)
        done = write_csv(session.output() / "answers.csv", [file.name for file in files], rows)
        return left_out_line(refused) + table(files, rows), gr.update(value=str(done), interactive=True)

    @toasts(studio, "Not classified")
    @for_this_picture(studio, TASK, 1)
    def run_again(path: str | None, touched: Asked, request: gr.Request):
        if not (path and is_due(studio, touched, TASK, request)):
            return gr.skip()
        try:
            return classify_it(path, request)
        except InputError as error:  # nobody asked for it, so it is no reason for a toast
            return hint(studio.public(str(error)))

    @toasts(studio, "No example")
    def show_example():
        return str(studio.examples.digit), cards(studio.examples.answers()) + EXAMPLE, 1

    nothing = [hint("Press Classify."), gr.update(value="", visible=False)]
    clear = on_another_picture(studio, TASK, picture, nothing, [answers, strip])

    def next_example(number: int, request: gr.Request):
        files = studio.digit_examples
        return str(files[number % len(files)]), number + 1, *clear(request)

    classify.click(run, picture, [answers, strip], api_visibility="private", **MODEL)
    start.click(run_all, many, [found, file], api_visibility="private", **MODEL)
    hidden = {"api_visibility": "private"}
    last = {"trigger_mode": "always_last", **hidden, **MODEL}
    panel.touched.change(run_again, [picture, panel.touched], answers, **last)
    panel.strip.change(show_strip, [picture, panel.strip], strip, **last).then(None, js=SHOW_STRIP)
    page.load(show_example, None, [picture, answers, turn], **hidden, **QUICK)
    example.click(next_example, turn, [picture, turn, answers, strip], **hidden, **QUICK)
    return strength
