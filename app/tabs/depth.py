"""Depth: a picture's depth by the base and by the mix, one laid over the other, and their difference."""

from pathlib import Path

import gradio as gr

from ..studio import Studio
from .common import MODEL, QUICK, hint, picture_input, toasts

START = "Choose a picture, or take the example, and press Estimate depth."


def build_depth(studio: Studio) -> None:
    """Lay the tab out and connect it."""
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
    said = gr.HTML(hint(START), elem_id="depth-said")
    with gr.Row():
        options = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"], "min_width": 220}
        base = gr.Image(label="Base", elem_id="depth-base", **options)
        adapted = gr.Image(label="Adapted", elem_id="depth-adapted", **options)
        difference = gr.Image(label="Adapted minus base", elem_id="depth-difference", **options)
    file = gr.DownloadButton("Download depth (16-bit PNG, millimetres)", interactive=False, elem_id="depth-file")

    @toasts(studio, "Depth not estimated")
    def run(path: str | None, request: gr.Request):
        session = studio.session(request.session_hash)
        maps = studio.depth.estimate(session, Path(path) if path else None)
        text = maps.text if maps.adapted else f"{maps.text}. Enable a depth adapter to compare"
        pair = (str(maps.plain_base), str(maps.plain_adapted or maps.plain_base))
        done = gr.update(value=_text(maps.millimetres), interactive=maps.millimetres is not None)
        shown = [_text(file) for file in (maps.base, maps.adapted, maps.difference)]
        return hint(text), pair, *shown, done

    outputs = [said, compare, base, adapted, difference, file]
    estimate.click(run, picture, outputs, api_name="depth", **MODEL)
    example.click(lambda: str(studio.depth_example), None, picture, api_visibility="private", **QUICK)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
