"""What the tabs share: errors as toasts, progress as a bar, texts that cannot be markup."""

import functools
import html
import inspect
from collections.abc import Callable

import gradio as gr

from onelora_vision.errors import InputError

#: Events that run a model share one limit, whatever their tab.
MODEL = {"concurrency_id": "model", "show_progress": "minimal"}
#: Quick ones go through the queue too: only there does a changed `gr.State` reach its listeners.
QUICK = {"concurrency_limit": None, "show_progress": "hidden"}


def toasts(function: Callable) -> Callable:
    """Turn `InputError` into a toast in words; anything else into one that says where to look."""

    def shown(error: Exception) -> gr.Error:
        if isinstance(error, gr.Error):
            return error
        if isinstance(error, InputError):
            return gr.Error(html.escape(str(error)), title="That did not work", print_exception=False)
        return gr.Error("Something unexpected went wrong; the server's log says what.", title="Sorry")

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def stepped(*args, **kwargs):
            try:
                yield from function(*args, **kwargs)
            except Exception as error:
                raise shown(error) from error

        return stepped

    @functools.wraps(function)
    def called(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except Exception as error:
            raise shown(error) from error

    return called


def bar(done: int, total: int, text: str) -> str:
    """A progress bar with words beside it."""
    return (
        f'<div class="progress" role="status"><progress value="{done}" max="{max(total, 1)}"></progress>'
        f"<span>{html.escape(text)}</span></div>"
    )


def hint(text: str) -> str:
    """A line that says what can be done here."""
    return f'<p class="hint" role="status">{html.escape(text)}</p>'


def say_cancelled(button: gr.Button, event, progress: gr.HTML) -> None:
    """Let a button cancel an event, and say so. The words go through the queue, so that they come after the last word of
    the event itself, which may still be on its way."""
    cancelled = button.click(lambda: None, cancels=[event], api_visibility="private", queue=False)
    cancelled.then(lambda: hint("Cancelled."), None, progress, api_visibility="private", **QUICK)
