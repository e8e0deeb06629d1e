"""Depth: a picture's depth by the base and by the mix, one laid over the other, and their difference."""

from pathlib import Path

import gradio as gr

from onelora_vision.errors import InputError

from ..depth import DepthMaps
from ..studio import Studio
from .adapters import AdapterPanel
from .common import MODEL, QUICK, hint, picture_input, toasts
from .strength import build_strengths, is_due

TASK = "depth"
START = "Estimating the depth of an example …"
EXAMPLE = (
    "An example, a rendered street. Change the strength, or choose a picture of your own and press Estimate depth."
)


def build_depth(studio: Studio, panel: AdapterPanel, page: gr.Blocks) -> gr.HTML:
    """Lay the tab out and connect it; returns the title of its strengths."""
    with gr.Row():
        with gr.Column(scale=1, min_width=240):
            picture = picture_input(elem_id="depth-picture")
            with gr.Row():
                example = gr.Button("Example", elem_id="depth-example", min_width=100)
                estimate = gr.Button("Estimate depth", variant="primary", elem_id="estimate", min_width=140)
        with gr.Column(scale=1, min_width=240):
            compare = gr.ImageSlider(
                label="Base | adapted: drag the line", type="filepath", format="png", elem_id="depth-compare"
            )
    strength = build_strengths(studio, panel, TASK)
    said = gr.HTML(hint(START), elem_id="depth-said")
    with gr.Row():
        options = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"], "min_width": 220}
        base = gr.Image(label="Base", elem_id="depth-base", **options)
        adapted = gr.Image(label="Adapted", elem_id="depth-adapted", **options)
        difference = gr.Image(label="Adapted minus base", elem_id="depth-difference", **options)
    file = gr.DownloadButton("Download depth (16-bit PNG, millimetres)", interactive=False, elem_id="depth-file")

    def estimate_it(path: str | None, request: gr.Request):
        session = studio.session(request.session_hash)
        return _shown(studio.depth.estimate(session, Path(path) if path else None))

    @toasts(studio, "Depth not estimated")
    def run(path: str | None, request: gr.Request):
        return estimate_it(path, request)

    @toasts(studio, "Depth not estimated")
    def run_again(path: str | None, touched: str, request: gr.Request):
        same = [gr.skip()] * (len(outputs) - 1)
        if not (path and is_due(studio, touched, TASK, request)):
            return [gr.skip(), *same]
        try:
            return estimate_it(path, request)
        except InputError as error:  # nobody asked for it, so it is no reason for a toast
            return [hint(studio.public(str(error))), *same]

    @toasts(studio, "No example")
    def show_example():
        said, *shown = _shown(studio.examples.depth())
        return str(studio.depth_example), said + hint(EXAMPLE), *shown

    outputs = [said, compare, base, adapted, difference, file]
    estimate.click(run, picture, outputs, api_visibility="private", **MODEL)
    hidden = {"api_visibility": "private"}
    panel.touched.change(run_again, [picture, panel.touched], outputs, trigger_mode="always_last", **hidden, **MODEL)
    page.load(show_example, None, [picture, *outputs], **hidden, **QUICK)
    example.click(lambda: str(studio.depth_example), None, picture, api_visibility="private", **QUICK)
    return strength


def _shown(maps: DepthMaps) -> tuple:
    """What the page shows of an estimate: text, slider, three maps, download."""
    text = maps.text if maps.adapted else f"{maps.text}. Enable a depth adapter to compare"
    pair = (str(maps.plain_base), str(maps.plain_adapted or maps.plain_base))
    done = gr.update(value=_text(maps.millimetres), interactive=maps.millimetres is not None)
    return hint(text), pair, *(_text(file) for file in (maps.base, maps.adapted, maps.difference)), done


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
