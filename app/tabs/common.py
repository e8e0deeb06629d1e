"""Helpers of all tabs: errors as toasts, progress bars, escaped texts."""

import contextlib
import functools
import html
import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gradio as gr

from onelora_vision.errors import InputError, TrainingError, WriteError, message_of

from ..runs import Runs
from ..studio import Studio

#: Events that run a model share one limit, whatever their tab.
MODEL = {"concurrency_id": "model", "show_progress": "minimal"}
#: Quick ones go through the queue too: only there does a changed `gr.State` reach its listeners.
QUICK = {"concurrency_limit": None, "show_progress": "hidden"}

#: The tab that answers with adapters of a task.
TAB_OF = {"generation": "generate", "depth": "depth", "classification": "classify"}


def toasts(studio: Studio, title: str) -> Callable[[Callable], Callable]:
    """Decorate an event's function: errors that users can act on become a toast with ``title`` and an API error.

    Anything else is a toast that points to the server's log. No path of this server is shown.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def called(*args, **kwargs):
            with _toasted(studio, title):
                return function(*args, **kwargs)

        @functools.wraps(function)
        def stepped(*args, **kwargs):
            with _toasted(studio, title):
                yield from function(*args, **kwargs)

        return stepped if inspect.isgeneratorfunction(function) else called

    return decorate


@contextlib.contextmanager
def _toasted(studio: Studio, title: str) -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except (InputError, TrainingError, WriteError) as error:
        raise refusal([studio.public(message_of(error))], title) from error
    except Exception as error:
        traceback.print_exception(error)
        raise refusal(["something unexpected went wrong; the server's log has the details"], title) from error


def refusal(lines: list[str], title: str) -> gr.Error:
    """Show each line in a toast of its own, and return the error to raise, which tells API users the same."""
    for line in lines:
        toast(gr.Warning, title, line)
    return gr.Error("\n".join(lines), visible=False, print_exception=False)


def toast(kind: Callable, title: str, text: str) -> None:
    """Show a toast: ``kind`` is `gr.Info` or `gr.Warning`."""
    # gradio's page ignores titles and writes the kind ("Error", "Info") in their place; the page's CSS hides that word
    kind(f"<b>{html.escape(title)}</b><br>{html.escape(text)}", title=title)


def left_out(refused: Sequence[str]) -> None:
    """Say which pictures were left out, and why."""
    if refused:
        more = f"; and {len(refused) - 3} more" if len(refused) > 3 else ""
        toast(gr.Warning, f"Left out: {len(refused)}", "; ".join(refused[:3]) + more)


def left_out_line(refused: Sequence[str]) -> str:
    """The same as a line that stays on the page, with every picture."""
    return hint(f"Left out: {'; '.join(refused)}") if refused else ""


def picture_input(**options) -> gr.Image:
    """A picture from the user, as the path of the file that was sent.

    `gr.Image` would decode it, convert it to 8-bit RGB and fail in words of its own; `read_image` does this here, for
    the page as for the command line.
    """
    picture = gr.Image(label="Picture", type="filepath", format="png", height=350, **options)
    # not a subclass: gradio writes a .pyi file next to the code of each
    picture.preprocess = functools.partial(_sent_file, folder=picture.GRADIO_CACHE)
    return picture


def _sent_file(payload: gr.data_classes.ImageData | None, folder: str) -> str | None:
    if payload is None:
        return None
    if payload.path is None:  # an API client's data: URL
        return gr.processing_utils.save_base64_to_cache(payload.url, folder)
    # gradio checks paths only where the request marks them as files
    if not Path(payload.path).resolve().is_relative_to(Path(folder).resolve()):
        raise gr.Error("upload the picture: files of the server are not read", print_exception=False)
    return payload.path


def on_another_picture(studio: Studio, task: str, picture: gr.Image, nothing: list, outputs: list) -> Callable:
    """Clear ``outputs``, which show results for a picture, when a user replaces or removes the picture.

    Args:
        nothing: the values of outputs that show no result.

    Returns a function from a `gr.Request` to these values, for an event that replaces the picture by itself.
    """

    def clear(path: str | None, request: gr.Request) -> list:
        session = studio.session(request.session_hash)
        session.pictures[task] = path
        # this event may come after the answer that was asked for at once
        return [gr.skip()] * len(outputs) if path and session.asked_about.get(task) == path else nothing

    def removed(request: gr.Request) -> list:
        return clear(None, request)

    def example(request: gr.Request) -> list:
        session = studio.session(request.session_hash)
        session.turns[task] += 1
        session.pictures.pop(task, None)
        return nothing

    picture.upload(clear, picture, outputs, api_visibility="private", **QUICK)
    # gr.Image still has its old value when it is cleared
    picture.clear(removed, None, outputs, api_visibility="private", **QUICK)
    return example


def for_this_picture(studio: Studio, task: str, outputs: int) -> Callable[[Callable], Callable]:
    """Decorate an event's function that answers about a picture: if the picture was replaced meanwhile, nothing changes.

    Args:
        outputs: the number of values that it returns. Its first argument is the picture's path.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def called(*args):
            session = studio.session(args[-1].session_hash)  # gr.Request is the last argument
            turn, path = session.turns[task], args[0]
            session.asked_about[task] = path
            answer = function(*args)
            is_here = session.turns[task] == turn and session.pictures.get(task, path) == path
            return answer if is_here else _nothing(outputs)

        return called

    return decorate


def _nothing(outputs: int):
    return gr.skip() if outputs == 1 else [gr.skip()] * outputs


#: Scrolls to the strip of the open tab, if it is out of sight, and again when its picture has come and takes room.
SHOW_STRIP = """() => {
  const strip = [...document.querySelectorAll(".of-strengths")].find(strip => strip.offsetParent);
  const show = () => strip?.scrollIntoView({behavior: "smooth", block: "nearest"});
  strip?.querySelector("img")?.addEventListener("load", show, {once: true});
  show();
}"""


def whole(name: str, value: float | None) -> int:
    """The whole number in a field of the page. (gradio's own checks have messages that users would not understand.)

    Raises:
        InputError: it is empty, or has a fraction.
    """
    if value is None:
        raise InputError(f"{name} is empty: enter a whole number")
    if value != int(value):
        raise InputError(f"{name} {value:g}: must be a whole number")
    return int(value)


def bar(done: int, total: int, text: str) -> str:
    """A progress bar with words beside it."""
    return (
        f'<div class="progress" role="status"><progress value="{done}" max="{max(total, 1)}"></progress>'
        f"<span>{html.escape(text)}</span></div>"
    )


def hint(text: str) -> str:
    """A line of advice."""
    return f'<p class="hint" role="status">{html.escape(text)}</p>'


def compared(pair: tuple[Path, Path] | None) -> dict:
    """The update of a slider that shows a pair of sheets, or is hidden."""
    return gr.update(value=tuple(map(str, pair)), visible=True) if pair else gr.update(value=None, visible=False)


def announce(start: gr.Button, cancel: gr.Button, ticket: gr.State, runs: Callable[[gr.Request], Runs]):
    """Let ``start`` announce a drawing and ``cancel`` cancel what was announced; returns the event to draw after.

    Both bypass the queue, so that a drawing that is still waiting there can be cancelled, too. gradio's own cancelling is
    not used, because it leaves the last preview on the page.
    """

    def take_ticket(request: gr.Request) -> int:
        return runs(request).take_ticket()

    def stop(request: gr.Request) -> None:
        runs(request).cancel()

    past = {"queue": False, "show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple"}
    cancel.click(stop, None, None, **past)
    return start.click(take_ticket, None, ticket, **past)
