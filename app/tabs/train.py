"""Train: images, a base and a method; the run with its loss and pictures as they come; all runs of this user."""

import html
import secrets
from pathlib import Path

import gradio as gr
import pandas

from onelora_vision.errors import InputError, message_of

from ..cards import in_words
from ..drawing import MAX_SEED
from ..kept import Choice, Number, Switch
from ..studio import Studio
from ..trainings.curve import TRAINING, VALIDATION, loss_points, newest_evaluation
from ..trainings.guide import KINDS, MAX_STEPS, METHODS, Settings
from ..trainings.images import describe, survey
from ..trainings.run import Phase, Training
from ..trainings.runs import Progress
from .adapters import AdapterPanel, Asked
from .common import QUICK, TAB_OF, bar, hint, toast, toasts, whole
from .folders import folder_input
from .kept import KeptSettings

EVERY = 2.0  # seconds between two looks at a run
BUILT_IN = "Without images of yours, it trains on the data that come with the package."
EMPTY = hint("No training yet. Choose images, or take the built-in ones, and press Start.")
_NO_CURVE = pandas.DataFrame({"step": [], "loss": [], "curve": []})


def build_train(studio: Studio, panel: AdapterPanel, page: gr.Blocks, kept: KeptSettings, tabs: gr.Tabs) -> None:
    """Lay the tab out and connect it; a finished adapter is shown in ``tabs``."""
    # The secret lets a browser find its own trainings again; it is not one to keep from the browser.
    secret = gr.BrowserState("", storage_key="onelora-studio", secret="onelora-studio")
    if studio.trainings.refusal:
        gr.HTML(hint(f"{studio.trainings.refusal[0].upper()}{studio.trainings.refusal[1:]}."), elem_id="train-refused")
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            settings, start = _build_settings(studio, page)
            _keep(kept, settings)
        with gr.Column(scale=3, min_width=300):
            view = _build_view()
    _connect(studio, panel, page, tabs, secret, settings, start, view)


def _build_settings(studio: Studio, page: gr.Blocks) -> tuple[list, gr.Button]:
    """The widgets of the settings, in the order of `_settings_of`, and the one that starts."""
    is_on = not studio.trainings.refusal
    first_kind, first_method = next(iter(KINDS)), next(iter(METHODS))
    kind = gr.Radio(list(KINDS), value=first_kind, label="Learn to", elem_id="train-kind")
    with gr.Column(elem_classes="tight"):
        images = folder_input(page, "Images: one subfolder per class", "train-images")
    found = gr.HTML(hint(BUILT_IN), elem_id="train-found")
    method = gr.Dropdown(list(METHODS), value=first_method, label="Method", elem_id="train-method")
    base = gr.Dropdown(studio.base_names(KINDS[first_kind].task), label="Base", elem_id="train-base")
    with gr.Row():
        steps = gr.Number(KINDS[first_kind].steps, label="Steps", min_width=100, elem_id="train-steps")
        rate = gr.Number(METHODS[first_method].rate, label="Learning rate", min_width=120, elem_id="train-rate")
        seed = gr.Number(0, label="Seed", min_width=80, elem_id="train-seed")
    measure = gr.Checkbox(
        False, label="Measure the samples", info="Against real images, where the data are built in; takes minutes"
    )
    start = gr.Button("Start", variant="primary", elem_id="train-start", interactive=is_on)

    def kind_chosen(name: str):
        names = studio.base_names(KINDS[name].task)
        can_send = KINDS[name].takes_images
        hidden = gr.update(visible=KINDS[name].script == "dit")
        return gr.update(choices=names, value=names[0]), gr.update(visible=can_send), hidden

    def look(path: str | None):
        try:
            return hint(describe(survey(Path(path), studio.trainings.limits)) if path else BUILT_IN)
        except InputError as error:
            said = studio.public(message_of(error))
            toast(gr.Warning, "Not images in classes", said)
            return hint(f"Not taken: {said}")

    private = {"api_visibility": "private"}
    kind.input(lambda name: KINDS[name].steps, kind, steps, **private, **QUICK)
    kind.change(kind_chosen, kind, [base, images, measure], **private, **QUICK)
    method.input(lambda name: METHODS[name].rate, method, rate, **private, **QUICK)
    images.change(look, images, found, **private, **QUICK)
    return [kind, images, method, base, steps, rate, seed, measure], start


def _keep(kept: KeptSettings, settings: list) -> None:
    """Have the browser keep the settings, but for the images and the base."""
    kind, _, method, _, steps, rate, seed, measure = settings
    kept.keep("train.kind", kind, Choice(KINDS))
    kept.keep("train.method", method, Choice(METHODS))
    kept.keep("train.steps", steps, Number(1, MAX_STEPS, whole=True))
    kept.keep("train.rate", rate, Number(1e-8, 1))
    kept.keep("train.seed", seed, Number(0, MAX_SEED, whole=True))
    kept.keep("train.measure", measure, Switch())


def _build_view() -> dict:
    """The widgets that show a run."""
    view = {"run": gr.Dropdown([], label="Training", elem_id="train-run")}
    view["said"] = gr.HTML(EMPTY, elem_id="train-said")
    with gr.Row():
        names = {"stop": "Stop", "resume": "Resume", "use": "Use the adapter", "delete": "Delete"}
        for key, name in names.items():
            view[key] = gr.Button(
                name, size="sm", min_width=80, interactive=False, elem_id=f"train-{key}",
                variant="primary" if key == "use" else "secondary",
            )  # fmt: skip
    view["curve"] = gr.LinePlot(
        _NO_CURVE, x="step", y="loss", color="curve", height=230, elem_id="train-curve", visible=False,
        color_map={TRAINING: "#14b8a6", VALIDATION: "#d97706"},
    )  # fmt: skip
    view["picture"] = gr.Image(
        interactive=False, visible=False, format="png", elem_id="train-picture",
        buttons=["download", "fullscreen"],
    )  # fmt: skip
    view["report"] = gr.DownloadButton("Download the report", size="sm", visible=False, elem_id="train-report")
    view["timer"] = gr.Timer(EVERY, active=False)
    view["seen"] = gr.State("")
    return view


def _connect(studio: Studio, panel: AdapterPanel, page, tabs, secret, settings: list, start, view: dict) -> None:
    run, state = view["run"], [panel.version, panel.changed]
    shown = [view[name] for name in ("said", "stop", "resume", "use", "delete", "curve", "picture", "report")]
    shown += [view["timer"], view["seen"]]

    def look_at(name: str | None, key: str, seen: str, request: gr.Request) -> list:
        """The widgets of ``shown`` for a training; they stay as they are if nothing has changed."""
        if not name:
            return _nothing()
        training = studio.trainings.get(key, name)
        progress = studio.trainings.progress(training)
        pictures = training.pictures()
        mark = f"{name} {progress} {len(pictures)}"
        if mark == seen:
            return [gr.skip()] * len(shown)
        picture = str(studio.shown(studio.session(request.session_hash), pictures[-1])) if pictures else None
        return [*_view_of(studio, training, progress, picture, request), mark]

    def runs_of(key: str, wanted: str | None = None) -> dict:
        names = [(_label(one), one.name) for one in studio.trainings.of(key)]
        known = [name for _, name in names]
        return gr.update(choices=names, value=wanted if wanted in known else next(iter(known), None))

    @toasts(studio, "Trainings not listed")
    def opened(key: str, version: int, changed: int, request: gr.Request):
        key = key or secrets.token_urlsafe(24)
        added = studio.adopt(studio.session(request.session_hash), key)
        more = 1 if added else 0
        return key, runs_of(key), version + more, changed + more

    @toasts(studio, "Not started")
    def started(key: str, kind, images, method, base, steps, rate, seed, measure):
        steps, seed = whole("steps", steps), whole("seed", seed)
        for name, value in (("steps", steps), ("learning rate", rate)):
            if not value:  # 0 stands for the guide's value elsewhere
                raise InputError(f"{name}: enter a number greater than 0")
        wanted = Settings.checked(kind, method, base or "", steps, rate, seed=seed, measure=bool(measure))
        archive = Path(images) if images and KINDS[kind].takes_images else None
        return runs_of(key, studio.trainings.start(key, wanted, archive).name)

    @toasts(studio, "Not shown")
    def ticked(name: str | None, key: str, seen: str, version: int, changed: int, request: gr.Request):
        looked = look_at(name, key, seen, request)
        added = studio.adopt(studio.session(request.session_hash), key)
        more = 1 if added else 0
        return [*looked, version + more, changed + more] if more else [*looked, gr.skip(), gr.skip()]

    private = {"api_visibility": "private"}
    page.load(opened, [secret, *state], [secret, run, *state], **private, **QUICK)
    start.click(started, [secret, *settings], run, show_progress="minimal", **private)
    looking = toasts(studio, "Not shown")(lambda name, key, request: look_at(name, key, "", request))

    def look(name: str | None, key: str, request: gr.Request):
        return looking(name, key, request)

    run.change(look, [run, secret], shown, **private, **QUICK)
    view["timer"].tick(ticked, [run, secret, view["seen"], *state], [*shown, *state], **private, **QUICK)
    _connect_buttons(studio, panel, tabs, secret, view, shown, look_at, runs_of)


def _connect_buttons(
    studio: Studio, panel: AdapterPanel, tabs, secret, view: dict, shown: list, look_at, runs_of
) -> None:
    """Stop, resume, delete and use the training that is shown; the functions are those of `_connect`."""
    run, state, private = view["run"], [panel.version, panel.changed], {"api_visibility": "private"}

    @toasts(studio, "Not stopped")
    def stopped(name: str, key: str):
        studio.trainings.stop(key, name)
        return hint("Stopping: it writes a checkpoint …"), gr.update(interactive=False)

    @toasts(studio, "Not resumed")
    def resumed(name: str, key: str, request: gr.Request):
        studio.trainings.resume(key, name)
        return look_at(name, key, "", request)

    asked = gr.State("")  # the training that the next click on Delete deletes

    @toasts(studio, "Not deleted")
    def deleted(name: str, key: str, about: str, version: int, changed: int, request: gr.Request):
        if about != name:
            toast(gr.Warning, "Delete it?", "Its images, run and adapter are deleted: press the button again.")
            return gr.skip(), name, gr.update(value="Delete for good"), gr.skip(), gr.skip()
        studio.trainings.remove(key, name)
        entry = studio.session(request.session_hash).trained.pop(name, None)
        if entry is not None:
            studio.session(request.session_hash).enabled.discard(entry.name)
        return runs_of(key), "", gr.update(value="Delete"), version + 1, changed + 1

    @toasts(studio, "Not used")
    def used(name: str, key: str, version: int, changed: int, touched: Asked, request: gr.Request):
        session = studio.session(request.session_hash)
        studio.adopt(session, key)
        entry = session.trained[studio.trainings.get(key, name).name]
        session.use(entry.name)
        task = entry.adapter.info.task
        return gr.update(selected=TAB_OF[task]), version + 1, changed + 1, touched.then(task)

    view["stop"].click(stopped, [run, secret], [view["said"], view["stop"]], **private, **QUICK)
    view["resume"].click(resumed, [run, secret], shown, **private, **QUICK)
    view["delete"].click(
        deleted, [run, secret, asked, *state], [run, asked, view["delete"], *state], **private, **QUICK
    )
    run.change(lambda: ("", gr.update(value="Delete")), None, [asked, view["delete"]], **private, **QUICK)
    using = [*state, panel.touched]
    view["use"].click(used, [run, secret, *using], [tabs, *using], **private, **QUICK)


def _nothing() -> list:
    off, hidden = gr.update(interactive=False), gr.update(visible=False)
    return [EMPTY, off, off, off, off, hidden, hidden, hidden, gr.Timer(active=False), ""]


def _view_of(studio: Studio, run: Training, progress: Progress, picture: str | None, request: gr.Request) -> list:
    """The values of all widgets that show a training."""
    phase, rows = progress.phase, run.metrics()
    points = loss_points(rows)
    curve = pandas.DataFrame(points, columns=["step", "loss", "curve"]) if points else _NO_CURVE
    is_running = phase is Phase.RUNNING
    report = run.report()
    may_resume = phase in (Phase.STOPPED, Phase.FAILED) and not studio.trainings.refusal
    copy = str(studio.shown(studio.session(request.session_hash), report)) if report else None
    return [
        _said(studio, run, progress, newest_evaluation(rows)),
        gr.update(interactive=is_running),
        gr.update(interactive=may_resume),
        gr.update(interactive=phase is Phase.FINISHED),
        gr.update(interactive=not is_running),
        gr.update(value=curve, visible=len(points) > 1),
        gr.update(value=picture, visible=picture is not None, label=KINDS[run.settings.kind].pictures),
        gr.update(value=copy, visible=copy is not None),
        gr.Timer(active=is_running),
    ]


def _said(studio: Studio, run: Training, progress: Progress, evaluation: dict) -> str:
    """A training's progress, data and metrics."""
    left = progress.seconds_left
    if progress.phase is Phase.RUNNING:
        more = f", {_duration(left)} left" if left is not None else " …"
        lines = bar(progress.step, progress.steps, f"{progress.text}{more}")
    else:
        end = {Phase.FINISHED: "Finished", Phase.STOPPED: "Stopped", Phase.FAILED: "Failed"}[progress.phase]
        why = {Phase.FINISHED: "", Phase.STOPPED: "; Resume goes on from there"}.get(
            progress.phase, f": {studio.public(progress.text)}"
        )
        lines = hint(f"{end} after {progress.step} of {progress.steps} steps{why}")
    on = describe(run.counts) if run.counts else "built-in data"
    lines += f'<p class="hint">{html.escape(run.settings.method)}, learning rate {run.settings.rate:g}, {html.escape(on)}</p>'
    before, after = run.before_and_after()
    if progress.phase is not Phase.FINISHED:
        before, after = before, evaluation or {}
    figures = [in_words(key, before[key], after[key]) for key in list(after)[:3] if before.get(key) is not None]
    return lines + (f'<p class="hint">{html.escape("; ".join(figures))}</p>' if figures else "")


def _label(run: Training) -> str:
    return f"{run.title} · {run.name[5:16]}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
