"""Depth of a picture by the base and by the mix, as maps, as a slider and as their difference."""

from pathlib import Path

import gradio as gr

from onelora_vision.errors import InputError

from ..depth_maps import COLORS, DepthMaps, Look
from ..kept import Choice, Switch
from ..strips import strip_title
from ..studio import Studio
from .adapters import AdapterPanel, Asked
from .common import MODEL, QUICK, SHOW_STRIP, for_this_picture, hint, on_another_picture, picture_input, toasts
from .depth_more import NO_POINTS, build_batch, build_points
from .kept import KeptSettings
from .strength import build_strengths, is_due

TASK = "depth"
START = "Estimating the depth of an example …"
EXAMPLE = (
    "An example, a rendered street. Change the strength, or choose a picture of your own and press Estimate depth."
)


def build_depth(studio: Studio, panel: AdapterPanel, kept: KeptSettings) -> gr.HTML:
    """Lay the tab out and connect it; returns the title of its strengths."""
    picture, example, estimate, compare = _build_picture()
    strength = build_strengths(studio, panel, TASK)
    said = gr.HTML(hint(START), elem_id="depth-said")
    options = {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"], "min_width": 220}
    strip = gr.Image(elem_id="depth-strip", elem_classes="of-strengths", visible=False, **options)
    with gr.Row():
        base = gr.Image(label="Base", elem_id="depth-base", **options)
        adapted = gr.Image(label="Adapted", elem_id="depth-adapted", **options)
        difference = gr.Image(label="Adapted minus base", elem_id="depth-difference", **options)
    with gr.Row():
        colors = gr.Dropdown(list(COLORS), value=COLORS[0], label="Colours", min_width=140, elem_id="depth-colors")
        inverse = gr.Checkbox(
            False, label="Inverse depth", info="1 / metres: more colours for what is near", container=True,
            min_width=200, elem_id="depth-inverse",
        )  # fmt: skip
    file = gr.DownloadButton("Download depth (16-bit PNG, millimetres)", interactive=False, elem_id="depth-file")
    look = [colors, inverse]
    kept.keep("depth.colors", colors, Choice(COLORS))
    kept.keep("depth.inverse", inverse, Switch())
    outputs = [said, compare, base, adapted, difference, file]
    points = build_points(studio, picture, kept)
    _connect(studio, panel, kept, picture, look, estimate, [*outputs, *points], strip)
    build_batch(studio, look)
    everything = [*outputs, *points, strip]
    clear = on_another_picture(studio, TASK, picture, _NOTHING, everything)

    def take_example(request: gr.Request):
        return str(studio.depth_example), *clear(request)

    example.click(take_example, None, [picture, *everything], api_visibility="private", **QUICK)
    return strength


def _build_picture() -> tuple:
    """The picture, its two buttons, and the slider next to it."""
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
    return picture, example, estimate, compare


def _connect(
    studio: Studio, panel: AdapterPanel, kept: KeptSettings, picture, look: list, estimate, outputs: list, strip
) -> None:
    """Estimate when asked, when the strength changes, and an example at first; draw again in other colours.

    Args:
        look: colours, and whether inverse. outputs: as `_shown` returns them, then the points and their download.
    """

    here = for_this_picture(studio, TASK, len(outputs))

    @toasts(studio, "Depth not estimated")
    @for_this_picture(studio, TASK, len(outputs) + 1)
    def run(path: str | None, colors: str, inverse: bool, request: gr.Request):
        maps = studio.depth.estimate(studio.session(request.session_hash), _path(path), look=Look(colors, inverse))
        return *_shown(maps), *NO_POINTS, gr.update(visible=False)

    @toasts(studio, "Depth not estimated")
    @here
    def run_again(path: str | None, colors: str, inverse: bool, touched: Asked, request: gr.Request):
        same = [gr.skip()] * (len(outputs) - 1)
        if not (path and is_due(studio, touched, TASK, request)):
            return [gr.skip(), *same]
        try:
            session = studio.session(request.session_hash)
            return *_shown(studio.depth.estimate(session, Path(path), look=Look(colors, inverse))), *NO_POINTS
        except InputError as error:  # nobody asked for it, so it is no reason for a toast
            return [hint(studio.public(str(error))), *same]

    @toasts(studio, "Not drawn")
    @here
    def draw_again(path: str | None, colors: str, inverse: bool, request: gr.Request):
        if not path:
            return [gr.skip()] * len(outputs)
        session = studio.session(request.session_hash)
        same = [gr.skip()] * 2  # other colours leave the points as they are
        return *_shown(studio.depth.draw_again(session, Path(path), Look(colors, inverse))), *same

    @toasts(studio, "No example")
    def show_example(colors: str, inverse: bool, request: gr.Request):
        look, session = Look(colors, inverse), studio.session(request.session_hash)
        is_plain = look == Look()
        maps = studio.examples.depth() if is_plain else studio.depth.draw_again(session, studio.depth_example, look)
        said, *shown = _shown(maps)
        return str(studio.depth_example), said + hint(EXAMPLE), *shown, *NO_POINTS

    @toasts(studio, "No strip")
    @for_this_picture(studio, TASK, 1)
    def draw_strip(path: str | None, colors: str, inverse: bool, asked: Asked, request: gr.Request):
        if asked.task != TASK:
            return gr.skip()
        session, look = studio.session(request.session_hash), Look(colors, inverse)
        drawn = str(studio.depth.strip(session, asked.adapter, _path(path), look))
        return gr.update(value=drawn, label=strip_title(asked.adapter), visible=True)

    options = {"api_visibility": "private", "trigger_mode": "always_last", **MODEL}
    estimate.click(run, [picture, *look], [*outputs, strip], api_visibility="private", **MODEL)
    panel.touched.change(run_again, [picture, *look, panel.touched], outputs, **options)
    panel.strip.change(draw_strip, [picture, *look, panel.strip], strip, **options).then(None, js=SHOW_STRIP)
    gr.on([widget.input for widget in look], draw_again, [picture, *look], outputs, **options)
    kept.loaded.change(show_example, look, [picture, *outputs], api_visibility="private", **QUICK)


def _shown(maps: DepthMaps) -> tuple:
    """What the page shows of an estimate: text, slider, three maps, download."""
    text = maps.text if maps.adapted else f"{maps.text}. Enable a depth adapter to compare"
    pair = (str(maps.plain_base), str(maps.plain_adapted or maps.plain_base))
    done = gr.update(value=_text(maps.millimetres), interactive=maps.millimetres is not None)
    return hint(text), pair, *(_text(file) for file in (maps.base, maps.adapted, maps.difference)), done


#: The values of all outputs before a picture is estimated: text, slider, three maps, download, points, strip.
_NOTHING = [
    hint("Press Estimate depth."), None, None, None, None, gr.update(value=None, interactive=False), *NO_POINTS,
    gr.update(value=None, visible=False),
]  # fmt: skip


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
