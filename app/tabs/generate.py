"""Generate: draw classes with the base and with the mix, on the same noise; grids; settings from a picture."""

import functools
import random
from pathlib import Path

import gradio as gr

from onelora_vision.diffusion.settings import SAMPLER_NAMES
from onelora_vision.errors import InputError

from ..drawing import MAX_IMAGES, MAX_SEED, TASK, Drawing, Picture, Request, own_guidance
from ..examples import CLASSES, IMAGES
from ..grid import AXES, parse_axis
from ..kept import Choice, Number, Switch, Texts
from ..restore import restore
from ..runs import Runs, State
from ..sessions import Session
from ..strips import strip_title
from ..studio import Studio
from .adapters import AdapterPanel, Asked
from .common import MODEL, QUICK, SHOW_STRIP, announce, bar, compared, hint, toast, toasts, whole
from .history import build_history
from .kept import KeptSettings
from .strength import build_strengths, is_due

START = hint("Drawing an example …")
EXAMPLE = hint(
    "An example with seed 0: the base and the adapter draw on the same noise. Change the strength, or choose classes and press Draw."
)
AXIS_VALUES = {
    "adapter weight": "0, 0.5, 1, 1.5",
    "guidance": "1, 2.5, 4",
    "guidance from": "adapted, base",
    "steps": "5, 10, 20",
    "adapter": "",
    "seed": "0, 1, 2",
}


def build_generate(studio: Studio, panel: AdapterPanel, page: gr.Blocks, kept: KeptSettings) -> gr.HTML:
    """Lay the tab out and connect it; returns the title of its strengths."""
    settings = _build_settings(studio)
    _keep(studio, kept, settings)
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", elem_id="draw")
        cancel = gr.Button("Cancel", elem_id="cancel")
    strength = build_strengths(studio, panel, TASK)
    progress = gr.HTML(START, elem_id="draw-progress")
    _strip(studio, panel, settings, cancel)
    with gr.Row():
        options = {"format": "png", "object_fit": "contain", "height": "auto", "buttons": ["download"]}
        of_base = gr.Gallery(label="Base", elem_id="of-base", elem_classes="drawn", min_width=280, **options)
        of_mix = gr.Gallery(label="Adapted", elem_id="of-mix", elem_classes="drawn", min_width=280, **options)
    with gr.Row():
        compare = gr.ImageSlider(
            label="Base | adapted: drag the line", type="filepath", format="png", visible=False, min_width=280,
            elem_id="draw-compare", elem_classes="drawn",
        )  # fmt: skip
        real = gr.Gallery(
            label="Real images", elem_id="real", elem_classes="drawn", min_width=280, visible=False, **options
        )
    everything = gr.DownloadButton("Download all", interactive=False, elem_id="download-all")
    outputs = [progress, of_base, of_mix, everything, compare, settings[1]]
    drawn = _connect_drawing(studio, panel, page, kept, draw, cancel, settings, outputs)
    take = functools.partial(restored_settings, studio, from_history=True)
    build_history(studio, panel, page, settings, drawn, [progress, of_base, of_mix, compare], take)
    _show_real(studio, panel, settings[0], real)
    _restore(studio, panel, settings)
    _grid(studio, settings)
    return strength


def _build_settings(studio: Studio) -> list:
    """The widgets of the settings, in the order of `_request_of`."""
    defaults = Request(("-",))
    with gr.Row():
        classes = gr.Dropdown(
            [], label="Classes", multiselect=True, allow_custom_value=True, scale=3, min_width=260, elem_id="classes"
        )
        number = gr.Slider(1, 16, IMAGES, step=1, label="Images of each class", scale=2, min_width=220)
    with gr.Row():
        seed = gr.Number(0, label="Seed", min_width=120, elem_id="seed")
        is_random = gr.Checkbox(False, label="Random seed", min_width=160, container=True)
        steps = gr.Slider(1, 100, defaults.steps, step=1, label="Steps", min_width=200)
        guidance = gr.Slider(0, 10, defaults.guidance, step=0.1, label="Guidance", min_width=200)
    with gr.Accordion("More settings", open=False), gr.Row():
        sampler = gr.Dropdown(list(SAMPLER_NAMES), value=defaults.sampler, label="Sampler", min_width=120)
        base = gr.Dropdown(
            [("as the adapters name it", ""), *studio.base_names(TASK)],
            value="",
            label="Base: a folder of this app, or a hub id that it allows",
            allow_custom_value=True,
            scale=2,
        )
        compare = gr.Checkbox(True, label="Draw the base's pictures too", container=True)
        from_base = gr.Checkbox(
            False,
            label="Guidance from the base",
            info="Away from what the base draws without a class, not from what the mix does",
            container=True,
        )
    return [classes, seed, is_random, number, steps, sampler, guidance, base, compare, from_base]


def _keep(studio: Studio, kept: KeptSettings, settings: list) -> None:
    """Have the browser keep the settings."""
    switch, sampler, base = Switch(), Choice(SAMPLER_NAMES), Choice(["", *studio.base_names(TASK)])
    seed, number, steps, guidance = Number(0, MAX_SEED, True), Number(1, 16, True), Number(1, 100, True), Number(0, 10)
    kinds = [Texts(MAX_IMAGES, 200), seed, switch, number, steps, sampler, guidance, base, switch, switch]
    names = ("classes", "seed", "random", "number", "steps", "sampler", "guidance", "base", "compare", "from_base")
    for name, widget, kind in zip(names, settings, kinds, strict=True):
        kept.keep(f"generate.{name}", widget, kind)


def _request_of(classes, seed, is_random, number, steps, sampler, guidance, base, compare, from_base) -> Request:
    seed = random.randrange(MAX_SEED // 2) if is_random else whole("seed", seed)
    numbers = {"seed": seed, "num_images": int(number), "steps": int(steps), "guidance": float(guidance)}
    switches = {"compare": compare, "guidance_base": from_base}
    return Request(tuple(classes or ()), sampler=sampler, base=base or "", **numbers, **switches)


def _connect_drawing(
    studio: Studio, panel: AdapterPanel, page: gr.Blocks, kept: KeptSettings, draw, cancel, settings, outputs: list
) -> list:
    """Draw when asked, when the strength changes, and an example at first; returns the events that end a drawing.

    Args:
        outputs: text, both galleries, download, comparison, seed.
    """
    ticket = gr.State(0)

    def draw_it(request: gr.Request, number: int, *values):
        wanted = _request_of(*values)
        for drawing in studio.drawer.draw(studio.session(request.session_hash), wanted, number):
            shown = *_results(drawing), wanted.seed
            yield [gr.skip()] * len(shown) if drawing.state is State.SUPERSEDED else shown

    @toasts(studio, "Not drawn")
    def run(request: gr.Request, number: int, *values):
        yield from draw_it(request, number, *values)

    def runs(request: gr.Request) -> Runs:
        return studio.session(request.session_hash).drawings

    def take_ticket(touched: Asked, request: gr.Request) -> int:
        return runs(request).take_ticket() if is_due(studio, touched, TASK, request) else 0

    @toasts(studio, "Not drawn")
    def run_again(request: gr.Request, number: int, classes, seed, is_random, *others):
        """As `run`, but on the noise that is shown, and without setting the seed, which may just be changed."""
        try:
            drawn = draw_it(request, number, classes, seed, False, *others) if number else [[gr.skip()] * len(outputs)]
            for shown in drawn:
                yield shown[:-1]
        except InputError as error:  # nobody asked for it, so it is no reason for a toast
            yield [hint(studio.public(str(error))), *[gr.skip()] * (len(outputs) - 2)]

    @toasts(studio, "No example")
    def show_example(request: gr.Request):
        drawing = studio.examples.drawing()
        if runs(request).state is not State.IDLE:  # somebody was faster
            return [gr.skip()] * 5
        return EXAMPLE, *_results(drawing)[1:]

    hidden = {"api_visibility": "private", "trigger_mode": "multiple"}
    announced = announce(draw, cancel, ticket, runs)
    drawn = announced.then(run, [ticket, *settings], outputs, **hidden, **MODEL)
    touched = panel.touched.change(take_ticket, panel.touched, ticket, queue=False, show_progress="hidden", **hidden)
    drawn_again = touched.then(run_again, [ticket, *settings], outputs[:-1], **hidden, **MODEL)
    page.load(show_example, None, outputs[:5], api_visibility="private", **QUICK)
    _offer_classes(studio, panel, kept, settings)
    return [drawn, drawn_again]


def _offer_classes(studio: Studio, panel: AdapterPanel, kept: KeptSettings, settings: list) -> None:
    """Offer the classes and samplers of the current mix and its base."""
    classes, sampler, guidance, base, from_base = (settings[place] for place in (0, 5, 6, 7, 9))

    @toasts(studio, "Classes unknown")
    def first_choices(current: list[str] | None, chosen: str, base: str, request: gr.Request):
        names = studio.drawer.classes(studio.session(request.session_hash), base or "")
        return choices(current or names[:CLASSES], chosen, base, request)

    @toasts(studio, "Classes unknown")
    def choices(current: list[str] | None, chosen: str, base: str, request: gr.Request):
        session = studio.session(request.session_hash)
        names = studio.drawer.classes(session, base or "")
        # Without classes there is nothing to replace. This event may also be older than the restored classes.
        value = {"value": [one for one in current if one in names] or names[:CLASSES]} if current else {}
        mix = session.mix(TASK)
        info = f"Mix: {mix}" if mix.terms else "No adapter is enabled: the base draws alone"
        # Other adapters bring the guidance that they were evaluated with; some were trained to need none.
        own = own_guidance(mix) if session.follow_guidance(mix) else (gr.skip(), gr.skip())
        fitting = studio.drawer.samplers(session, base or "")
        of_base = gr.update(choices=fitting, value=chosen if chosen in fitting else fitting[0])
        return gr.update(choices=names, info=info, **value), of_base, *own

    inputs, shown = [classes, sampler, base], [classes, sampler, guidance, from_base]
    kept.loaded.change(first_choices, inputs, shown, api_visibility="private", **QUICK)
    gr.on([panel.changed.change, base.change], choices, inputs, shown, api_visibility="private", **QUICK)


def _shown(drawing: Drawing) -> str:
    said = {
        State.FINISHED: f"{drawing.text} Each PNG says how it was made: drop one below to get its settings back.",
        State.CANCELLED: "Cancelled.",
        State.FAILED: "Nothing was drawn.",
    }
    if drawing.state in said:
        return hint(said[drawing.state])
    return bar(drawing.done, drawing.total, drawing.text)


def _results(drawing: Drawing) -> tuple:
    """Text, both galleries, download and comparison."""
    galleries = _gallery(drawing.base), _gallery(drawing.adapted)
    return _shown(drawing), *galleries, _download(drawing), compared(drawing.pair)


def _download(drawing: Drawing) -> dict:
    """The update of the download button: it offers what is shown, or nothing."""
    return gr.update(value=drawing.archive, interactive=drawing.archive is not None)


def _gallery(pictures: list[Picture]) -> list[tuple]:
    return [(str(picture.image), picture.caption) for picture in pictures]


def _show_real(studio: Studio, panel: AdapterPanel, classes: gr.Dropdown, real: gr.Gallery) -> None:
    """Show real images of the chosen classes, if the adapters have some."""

    @toasts(studio, "No real images")
    def find(names: list[str] | None, request: gr.Request):
        found = studio.real_images(studio.session(request.session_hash), names) if names else None
        if found is None:
            return gr.update(value=None, visible=False)
        return gr.update(value=_gallery(found.pictures), label=found.text, visible=True)

    when = [classes.change, panel.changed.change]
    gr.on(when, find, classes, real, api_visibility="private", trigger_mode="always_last", **QUICK)


def _restore(studio: Studio, panel: AdapterPanel, settings: list) -> None:
    with gr.Accordion("Settings from a picture", open=False, elem_id="restore"):
        file = gr.File(
            label="Drop a PNG that was drawn here: its settings and adapters come back",
            file_types=[".png"],
            height=110,
            elem_id="restore-file",
        )

    @toasts(studio, "Not restored")
    def restored(path: str | None, version: int, changed: int, request: gr.Request):
        if path is None:
            return [gr.skip()] * (len(settings) + 3)
        values = restored_settings(studio, studio.session(request.session_hash), Path(path))
        return [None, version + 1, changed + 1, *values]

    state = [panel.version, panel.changed]
    file.upload(restored, [file, *state], [file, *state, *settings], api_visibility="private", show_progress="minimal")


def restored_settings(studio: Studio, session: Session, path: Path, from_history: bool = False) -> list:
    """Take the settings and adapters of a PNG; returns the values of all widgets of the settings."""
    found = restore(session, path)
    session.follow_guidance(session.mix(TASK))  # by the picture's guidance, not by its adapters'
    if found.missing:
        names = ", ".join(found.missing)
        again = "choose the drawing" if from_history else "drop the picture"
        toast(gr.Warning, "Adapter missing", f"Drawn with {names}: add it and {again} again.")
    elif not from_history:
        toast(gr.Info, "Restored", "Settings and adapters are those of the picture.")
    wanted, names = found.request, studio.drawer.classes(session, found.request.base)
    kept = gr.update(choices=names, value=[name for name in wanted.classes if name in names])
    sampler = gr.update(choices=studio.drawer.samplers(session, wanted.base), value=wanted.sampler)
    values = [kept, wanted.seed, False, wanted.num_images, wanted.steps, sampler, wanted.guidance]
    return [*values, wanted.base, wanted.compare, wanted.guidance_base]


def _strip(studio: Studio, panel: AdapterPanel, settings: list, cancel: gr.Button) -> None:
    """One adapter at several strengths, when the panel asks for it."""
    said = gr.HTML(visible=False, elem_id="strip-said")
    strip = gr.Image(
        format="png", interactive=False, visible=False, buttons=["download", "fullscreen"],
        elem_id="draw-strip", elem_classes=["drawn", "of-strengths"],
    )  # fmt: skip
    ticket = gr.State(0)

    def runs(request: gr.Request) -> Runs:
        return studio.session(request.session_hash).strips

    def take_ticket(asked: Asked, request: gr.Request) -> int:
        return runs(request).take_ticket() if asked.task == TASK else 0

    def stop(request: gr.Request) -> None:
        runs(request).cancel()

    @toasts(studio, "No strip")
    def run(request: gr.Request, number: int, asked: Asked, classes, *others):
        if not number:
            yield gr.skip(), gr.skip()
            return
        session, drawer = studio.session(request.session_hash), studio.grid_drawer
        wanted = drawer.strip_request(session, asked.adapter, _request_of(classes or [""], *others))
        title = f"{strip_title(asked.adapter)}: {', '.join(wanted.classes)} with seed {wanted.seed}"
        for drawing in drawer.strip(session, asked.adapter, wanted, number):
            is_drawn = drawing.state is State.FINISHED
            text = gr.update(value=_shown(drawing), visible=not is_drawn)
            picture = gr.update(visible=False)
            if is_drawn:
                picture = gr.update(value=_text(drawing), label=title, visible=True)
            yield (gr.skip(), gr.skip()) if drawing.state is State.SUPERSEDED else (text, picture)

    hidden = {"api_visibility": "private", "trigger_mode": "multiple"}
    asked = panel.strip.change(take_ticket, panel.strip, ticket, queue=False, show_progress="hidden", **hidden)
    drawn = asked.then(run, [ticket, panel.strip, *settings], [said, strip], **hidden, **MODEL)
    drawn.then(None, js=SHOW_STRIP)
    cancel.click(stop, None, None, queue=False, show_progress="hidden", **hidden)


def _text(drawing: Drawing) -> str | None:
    """The first picture of a grid, if there is one yet."""
    return str(drawing.adapted[0].image) if drawing.adapted else None


def _grid(studio: Studio, settings: list) -> None:
    with gr.Accordion("X/Y grid: two settings against each other", open=False, elem_id="grid"):
        with gr.Row():
            x_name = gr.Dropdown(list(AXES), value=AXES[0], label="Across", scale=2, min_width=170)
            x_values = gr.Textbox(AXIS_VALUES[AXES[0]], label="Values across", scale=2, min_width=160)
            y_name = gr.Dropdown(list(AXES), value=AXES[1], label="Down", scale=2, min_width=170)
            y_values = gr.Textbox(AXIS_VALUES[AXES[1]], label="Values down", scale=2, min_width=160)
        with gr.Row():
            start = gr.Button("Draw the grid", variant="primary", elem_id="draw-grid")
            stop = gr.Button("Cancel")
        progress = gr.HTML(hint("Each cell draws the chosen classes; give values with commas between them."))
        picture = gr.Image(label="Grid", format="png", interactive=False, elem_id="grid-picture", buttons=["download"])
        file = gr.DownloadButton("Download the grid", interactive=False)

    ticket = gr.State(0)

    @toasts(studio, "Not drawn")
    def run(request: gr.Request, number: int, *values):
        session, axes, wanted = studio.session(request.session_hash), values[:4], _request_of(*values[4:])
        x, y = parse_axis(session, axes[0], axes[1]), parse_axis(session, axes[2], axes[3])
        for drawing in studio.grid_drawer.draw(session, wanted, x, y, number):
            shown = _shown(drawing), _text(drawing), _download(drawing)
            yield [gr.skip()] * len(shown) if drawing.state is State.SUPERSEDED else shown

    def runs(request: gr.Request) -> Runs:
        return studio.session(request.session_hash).grids

    inputs = [ticket, x_name, x_values, y_name, y_values, *settings]
    announced = announce(start, stop, ticket, runs)
    options = {"api_visibility": "private", "trigger_mode": "multiple"}
    announced.then(run, inputs, [progress, picture, file], **options, **MODEL)

    for name, values in ((x_name, x_values), (y_name, y_values)):
        name.input(lambda axis: AXIS_VALUES[axis], name, values, api_visibility="private", **QUICK)
