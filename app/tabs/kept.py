"""The settings of the tabs, kept in the browser's storage and restored when the page is opened again."""

import gradio as gr

from ..drawing import TASK
from ..kept import Kind, Texts, accepted
from ..studio import Studio
from .common import QUICK

GUIDANCE = ("generate.guidance", "generate.from_base")  # set for the adapters that were enabled
_ADAPTERS = "adapters"  # those adapters, by name
_NAMES = Texts(32, 64)


class KeptSettings:
    """The widgets whose values are kept, each with the values that it can have.

    Attributes:
        loaded: changes once, when the values are restored: the page's first content waits for it.
    """

    def __init__(self):
        self.loaded = gr.State(False)
        self._widgets: dict[str, gr.components.Component] = {}
        self._kinds: dict[str, Kind] = {}

    def keep(self, name: str, widget: gr.components.Component, kind: Kind) -> None:
        """Keep a widget's value under a name."""
        self._widgets[name], self._kinds[name] = widget, kind

    def connect(self, studio: Studio, page: gr.Blocks) -> None:
        """Write the values when a person changes one, and take them back when the page is opened."""
        # the secret is no secret: with another one for each start of the app nothing could be read again
        store = gr.BrowserState({}, storage_key="onelora-settings", secret="onelora-settings")
        widgets, kinds = list(self._widgets.values()), {**self._kinds, _ADAPTERS: _NAMES}

        def adapters(request: gr.Request) -> list[str]:
            return [entry.name for entry, _ in studio.session(request.session_hash).mix(TASK).terms]

        def save(request: gr.Request, *values):
            return accepted({**dict(zip(self._widgets, values)), _ADAPTERS: adapters(request)}, kinds)

        def load(said: object, request: gr.Request):
            found = accepted(said, kinds)
            if found.pop(_ADAPTERS, None) == adapters(request) and any(name in found for name in GUIDANCE):
                session = studio.session(request.session_hash)
                session.follow_guidance(session.mix(TASK))  # the kept guidance is for the very same adapters
            else:
                found = {name: value for name, value in found.items() if name not in GUIDANCE}
            return [True, *(found.get(name, gr.skip()) for name in self._widgets)]

        options = {"api_visibility": "private", **QUICK}
        events = [widget.input for widget in widgets]
        gr.on(events, save, widgets, store, trigger_mode="always_last", **options)
        page.load(load, store, [self.loaded, *widgets], **options)
