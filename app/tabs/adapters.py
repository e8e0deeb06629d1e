"""The panel of adapters: which are open, which are enabled at which weight, and how to add more."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Self

import gradio as gr

from onelora_vision.backbones.table import TASKS

from ..cards import is_wanted, metric_in_words
from ..studio import Studio
from .common import MODEL, QUICK, TAB_OF, hint, refusal, toast, toasts

ALL, OF_TAB = "all", "tab"  # of what the panel shows


class Asked(NamedTuple):
    """A request to a tab: its task, the adapter if it concerns one, and the number of requests so far."""

    task: str = ""
    adapter: str = ""
    number: int = 0

    def then(self, task: str, adapter: str = "") -> Self:
        """The next request."""
        return Asked(task, adapter, self.number + 1)


@dataclass
class AdapterPanel:
    """Widgets of the panel that other tabs listen to.

    Attributes:
        version: changes when adapters are added or removed, or are switched from outside the list.
        changed: changes with every mix.
        touched: an `Asked`, whenever a user gives adapters other weights.
        tab: the task of the open tab; empty if it has none.
        strip: an `Asked`, whenever a user asks for the strip of strengths of an adapter.
    """

    version: gr.State
    changed: gr.State
    touched: gr.State
    tab: gr.State
    strip: gr.State


def _build_saving(studio: Studio) -> None:
    """The button that saves the enabled adapters of a task, at their weights, as one file."""
    with gr.Column(elem_classes="tight"):
        with gr.Row():
            task = gr.Dropdown(
                list(TASKS), value=next(iter(TASKS)), show_label=False, container=False, elem_id="mix-task"
            )
            save = gr.Button("Save this mix", min_width=120, size="md")
        mix = gr.File(label="The mix as one adapter file", interactive=False, visible=False, elem_id="mix-file")

    @toasts(studio, "Not saved")
    def save_mix(kind: str, request: gr.Request):
        path = studio.save_mix(studio.session(request.session_hash), kind)
        return gr.update(value=str(path), visible=True)

    save.click(save_mix, task, mix, api_visibility="private", **MODEL)


def build_panel(studio: Studio, panel: AdapterPanel, tabs: gr.Tabs, details: gr.Dropdown) -> None:
    """Lay the panel out and connect it; an adapter's details are shown in ``tabs`` by choosing it in ``details``."""

    with gr.Row(elem_classes="tight"):
        shown = gr.Dropdown(
            [("All adapters", ALL), ("Of the open tab", OF_TAB), *((row.does, task) for task, row in TASKS.items())],
            value=ALL, show_label=False, container=False, min_width=120, elem_id="panel-task",
        )  # fmt: skip
        words = gr.Textbox(
            placeholder="Search", show_label=False, container=False, min_width=100, elem_id="panel-search"
        )

    task = gr.State("")  # whose adapters are listed; empty for all of them
    gr.on(
        [shown.change, panel.tab.change],
        lambda wanted, tab: {ALL: "", OF_TAB: tab}.get(wanted, wanted),
        [shown, panel.tab],
        task,
        api_visibility="private",
        **QUICK,
    )

    @gr.render(inputs=[panel.version, task, words])
    def listed(version: int, wanted: str, text: str, request: gr.Request):
        _list(studio, panel, [tabs, details], wanted, text or "", request)

    with gr.Column(elem_classes="tight"):
        files = gr.File(
            label="Add adapters: .safetensors, .zip, or a PEFT folder's two files",
            file_count="multiple",
            height=120,
            elem_id="upload",
        )
        with gr.Row():
            hub = gr.Textbox(
                placeholder="or a hub id: owner/name", show_label=False, container=False, scale=3, elem_id="hub"
            )
            fetch = gr.Button("Fetch", scale=1, min_width=80, size="md")
        again = gr.Button("Look at the adapters folder again", size="sm", visible=studio.library.folder is not None)
    _build_saving(studio)

    @toasts(studio, "Not added")
    def take_files(paths: list[str] | None, version: int, changed: int, request: gr.Request):
        names, refused = studio.upload(studio.session(request.session_hash), paths or [])
        if names:
            toast(gr.Info, "Added", ", ".join(names))
        yield None, version + 1, changed + 1  # the list is emptied first: a refused file would be sent again and again
        if refused:
            raise refusal(refused, "Not added")

    @toasts(studio, "Not added")
    def from_hub(repo_id: str, version: int, changed: int, request: gr.Request):
        name = studio.add_from_hub(studio.session(request.session_hash), repo_id)
        toast(gr.Info, "Added", name)
        return "", version + 1, changed + 1

    @toasts(studio, "Not read")
    def look_again(version: int):
        for problem in studio.problems():
            toast(gr.Warning, "Not an adapter", problem)
        return version + 1

    state = [panel.version, panel.changed]
    files.upload(
        take_files,
        [files, *state],
        [files, *state],
        api_visibility="private",
        trigger_mode="multiple",
        show_progress="minimal",
    )
    gr.on(
        [fetch.click, hub.submit],
        from_hub,
        [hub, *state],
        [hub, *state],
        api_visibility="private",
        show_progress="minimal",
    )
    again.click(look_again, panel.version, panel.version, api_visibility="private")


def _list(studio: Studio, panel: AdapterPanel, shown_by: list, task: str, words: str, request: gr.Request) -> None:
    session = studio.session(request.session_hash)
    rows = studio.rows(session)
    if not rows:
        gr.HTML(hint("No adapters yet: add a file below, or start the app with --adapters FOLDER."))
    wanted = [row for row in rows if is_wanted(row, task, words)]
    if rows and not wanted:
        gr.HTML(hint("No adapter is like that: choose All adapters, or empty the search."))
    for row in wanted:
        with gr.Column(elem_classes="adapter"):
            _row(studio, panel, shown_by, row, studio.thumbnail(session, row["name"]))


def _row(studio: Studio, panel: AdapterPanel, shown_by: list, row: dict, picture: str | None) -> None:
    name = row["name"]
    enabled = gr.Checkbox(row["enabled"], label=name, interactive=True, container=False)
    gr.HTML(_facts(row, picture), padding=False)
    weight = gr.Slider(-2, 2, row["weight"], step=0.05, label=f"Weight of {name}", interactive=True)
    with gr.Row(elem_classes="tight"):
        details = gr.Button("Details", size="sm", min_width=64)
        strip = gr.Button("Strip −1 … 1.5", size="sm", min_width=110, visible=row["task"] in TAB_OF)
        remove = gr.Button("Remove", size="sm", visible=row["removable"], min_width=64)

    @toasts(studio, "Not changed")
    def switch(is_on: bool, number: float, changed: int, request: gr.Request):
        studio.session(request.session_hash).set(name, is_on, number)
        return changed + 1

    @toasts(studio, "Not changed")
    def release(is_on: bool, number: float, changed: int, touched: Asked, request: gr.Request):
        return switch(is_on, number, changed, request), touched.then(row["task"])

    @toasts(studio, "Not removed")
    def forget(version: int, changed: int, request: gr.Request):
        studio.session(request.session_hash).remove(name)
        return version + 1, changed + 1

    @toasts(studio, "No strip")
    def draw_strip(before: Asked):
        return gr.update(selected=TAB_OF[row["task"]]), before.then(row["task"], name)

    def on(event: Callable, what: str, function: Callable, inputs: list | None, outputs: list, **more) -> None:
        # the key keeps an event's number when the list is drawn anew: a click on the row that is just replaced counts
        event(function, inputs, outputs, key=f"{what} {name}", api_visibility="private", **more, **QUICK)

    values = [enabled, weight, panel.changed]
    touching = [*values, panel.touched], [panel.changed, panel.touched]
    state = [panel.version, panel.changed]
    on(enabled.input, "switch", release, *touching)
    on(weight.release, "release", release, *touching, trigger_mode="always_last")
    on(weight.input, "weigh", switch, values, [panel.changed], trigger_mode="always_last")
    on(details.click, "details", lambda: (gr.update(selected="details"), name), None, shown_by)
    on(strip.click, "strip", draw_strip, [panel.strip], [shown_by[0], panel.strip])
    on(remove.click, "remove", forget, state, state)


def _facts(row: dict, picture: str | None) -> str:
    size = row["bytes"]
    size = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
    lines = [metric_in_words(row["task"], row["metrics"])]
    lines += [
        " · ".join([TASKS[row["task"]].does, row["method"], f"{row['values']:,} values", size, f"on {row['base']}"])
    ]
    names = row["class_names"]
    if names:
        more = f" … ({len(names)} classes)" if len(names) > 12 else ""
        lines.append(f"classes: {', '.join(names[:12])}{more}")
    image = f'<img class="thumbnail" src="{picture}" alt="pictures of {html.escape(row["name"])}">' if picture else ""
    return f'<div class="facts">{image}' + "".join(f"<p>{html.escape(line)}</p>" for line in lines if line) + "</div>"
