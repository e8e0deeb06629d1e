"""The named endpoints for scripts, with typed arguments, and data and files as results. The page uses private events."""

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import gradio as gr

from onelora_vision.backbones.table import TASKS
from onelora_vision.diffusion.settings import SAMPLER_NAMES
from onelora_vision.errors import InputError, one_line

from ..classify import Answer
from ..depth_maps import COLORS, Look
from ..drawing import Drawing, Request
from ..grid import AXES, parse_axis
from ..restore import restore as take_settings
from ..runs import State
from ..sessions import Session
from ..studio import Studio
from ..trainings.guide import KINDS, METHODS, Settings
from ..trainings.run import Training
from .common import toasts

File = dict[str, Any]  # what gradio_client's handle_file makes
Sampler = Literal[tuple(SAMPLER_NAMES)]
Axis = Literal[tuple(AXES)]
Colors = Literal[COLORS]
Task = Literal[tuple(TASKS)]
Kind = Literal[tuple(KINDS)]
MethodName = Literal[tuple(METHODS)]
_FIRST_METHOD = next(iter(METHODS))


def build_api(studio: Studio) -> None:
    """Add all endpoints to the page that is being built."""
    sent = Sent()
    for group in (_adapters, _drawing, _looking, _training):
        for function, is_slow in group(studio, sent):
            options = {"concurrency_id": "model"} if is_slow else {"concurrency_limit": None}
            checked = toasts(studio, f"{function.__name__} refused")(typed(function))
            gr.api(checked, api_name=function.__name__, **options)


#: What a value may be, by the type of its argument, and how a message says so.
_TYPES = {
    int: (int, "a whole number"), float: ((int, float), "a number"), bool: (bool, "true or false"), str: (str, "a text"),
    list: (list, "a list"), dict: ((dict, str), "a file, made by handle_file"),
}  # fmt: skip


def typed(function: Callable) -> Callable:
    """Check the types of an endpoint's arguments before it is called: gradio passes on whatever a client sends.

    Raises:
        InputError: by the result, when an argument has another type than its annotation.
    """
    signature, hints = inspect.signature(function), get_type_hints(function)

    @functools.wraps(function)
    def called(*args, **kwargs):
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            _require_type(name, value, hints[name])
        return function(*args, **kwargs)

    return called


def _require_type(name: str, value: object, hint: object) -> None:
    if get_origin(hint) is UnionType:  # of a type and None
        if value is None:
            return
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        hint = str
    allowed, words = _TYPES.get(get_origin(hint) or hint, (object, ""))
    is_wrong_bool = isinstance(value, bool) and hint in (int, float)
    if not isinstance(value, allowed) or is_wrong_bool:
        raise InputError(f"{name}: {one_line(json.dumps(value, default=str), 60)} must be {words}")
    if get_origin(hint) is list:
        for item in value:
            _require_type(name, item, get_args(hint)[0])


class Sent:
    """Files from and for clients. Only uploaded files are read."""

    def __init__(self):
        self.folder = gr.utils.get_upload_folder()

    def path(self, file: File | str) -> Path:
        """The file that a client has sent.

        Raises:
            InputError: it was not uploaded.
        """
        path = Path(str(file.get("path") if isinstance(file, dict) else file))
        if not path.resolve().is_relative_to(Path(self.folder).resolve()):
            raise InputError("send files with gradio_client's handle_file: files of the server are not read")
        return path

    def file(self, path: Path | None) -> dict | None:
        """The handle by which a client downloads a file."""
        if path is None:
            return None
        copy = gr.processing_utils.save_file_to_cache(str(path), self.folder)
        return gr.FileData(path=copy, orig_name=path.name).model_dump()


Endpoints = list[tuple[Callable, bool]]  # functions, and whether they run a model


def _adapters(studio: Studio, sent: Sent) -> Endpoints:
    def adapters(request: gr.Request) -> list[dict[str, Any]]:
        """Every adapter of this session with its facts and its state."""
        return studio.rows(_session(studio, request))

    def set_adapter(request: gr.Request, name: str, enabled: bool = True, weight: float = 1.0) -> list[dict[str, Any]]:
        """Enable or disable an adapter, and give it a weight from -2 to 2; returns what `adapters` does."""
        session = _session(studio, request)
        session.set(name, enabled, weight)
        return studio.rows(session)

    def upload(request: gr.Request, files: list[File]) -> list[str]:
        """Add adapters: .safetensors, .zip, or the two files of a PEFT folder; returns their names."""
        names, refused = studio.upload(_session(studio, request), [sent.path(file) for file in files])
        if refused:
            raise InputError("\n".join(refused))
        return names

    def hub(request: gr.Request, repo_id: str) -> str:
        """Add an adapter of the Hugging Face hub; returns its name."""
        return studio.add_from_hub(_session(studio, request), repo_id)

    def blend(request: gr.Request, task: Task) -> dict[str, Any]:
        """The enabled adapters of a task, at their weights, as one adapter file."""
        session = _session(studio, request)
        return {"mix": str(session.mix(task)), "file": sent.file(studio.save_mix(session, task))}

    def details(request: gr.Request, name: str) -> dict[str, Any]:
        """All that an adapter's file says, and a plot of what it changes in each layer."""
        facts, plot = studio.details(_session(studio, request), name)
        return {"facts": facts, "plot": sent.file(plot)}

    return [(adapters, False), (set_adapter, False), (upload, False), (hub, False), (blend, True), (details, False)]


def _drawing(studio: Studio, sent: Sent) -> Endpoints:
    def pictures(drawing: Drawing) -> dict[str, Any]:
        parts = {name: [sent.file(one.image) for one in getattr(drawing, name)] for name in ("base", "adapted")}
        return {"text": drawing.text, **parts, "archive": sent.file(drawing.archive)}

    def draw(
        request: gr.Request, classes: list[str], seed: int = 0, num_images: int = 1, steps: int = 20,
        sampler: Sampler = "auto", guidance: float = 2.5, base: str = "", compare: bool = True,
        guidance_base: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Draw classes with the base and the enabled adapters on the same noise: PNGs that say how they were drawn."""
        wanted = Request(tuple(classes), seed, num_images, sampler, steps, guidance, base, compare, guidance_base)
        return pictures(_end_of(studio.drawer.draw(_session(studio, request), wanted)))

    def grid(
        request: gr.Request, x: Axis, x_values: str, y: Axis, y_values: str, classes: list[str], seed: int = 0,
        num_images: int = 1, steps: int = 20, sampler: Sampler = "auto", guidance: float = 2.5, base: str = "",
        guidance_base: bool = False,
    ) -> dict[str, Any]:  # fmt: skip
        """Draw every combination of the values of two settings into one picture; values have commas between them."""
        session = _session(studio, request)
        wanted = Request(tuple(classes), seed, num_images, sampler, steps, guidance, base, True, guidance_base)
        axes = parse_axis(session, x, x_values), parse_axis(session, y, y_values)
        drawing = _end_of(studio.grid_drawer.draw(session, wanted, *axes))
        return {"text": drawing.text, "picture": sent.file(drawing.archive)}

    def restore(request: gr.Request, picture: File) -> dict[str, Any]:
        """Enable the adapters of a PNG that was drawn here; returns its settings, as `draw` takes them."""
        found = take_settings(_session(studio, request), sent.path(picture))
        wanted = found.request
        settings = {name: getattr(wanted, name) for name in wanted.__dataclass_fields__}
        return {"settings": {**settings, "classes": list(wanted.classes)}, "missing_adapters": found.missing}

    return [(draw, True), (grid, True), (restore, False)]


def _looking(studio: Studio, sent: Sent) -> Endpoints:
    def depth(request: gr.Request, picture: File, colors: Colors = COLORS[0], inverse: bool = False) -> dict[str, Any]:
        """The depth of a picture by the base and by the enabled adapters: maps, and a 16-bit PNG in millimetres."""
        maps = studio.depth.estimate(_session(studio, request), sent.path(picture), look=Look(colors, inverse))
        names = ("base", "adapted", "difference", "millimetres")
        return {"text": maps.text, **{name: sent.file(getattr(maps, name)) for name in names}}

    def classify(request: gr.Request, pictures: list[File]) -> list[dict[str, Any]]:
        """For each picture, the five most probable classes by the base's head and by each enabled adapter."""
        files = [sent.path(picture) for picture in pictures]
        rows = studio.classifier.classify(_session(studio, request), files)
        return [{"picture": file.name, "answers": [_answer(one) for one in row]} for file, row in zip(files, rows)]

    return [(depth, True), (classify, True)]


def _training(studio: Studio, sent: Sent) -> Endpoints:
    def said(training: Training) -> dict[str, Any]:
        progress = studio.trainings.progress(training)
        how = {"phase": progress.phase.value, "step": progress.step, "steps": progress.steps}
        left = {"seconds_left": progress.seconds_left, "text": studio.public(progress.text)}
        return {"name": training.name, "title": training.title, **how, **left}

    def train(
        request: gr.Request, kind: Kind, images: File | None = None, method: MethodName = _FIRST_METHOD, base: str = "",
        steps: int = 0, learning_rate: float = 0.0, seed: int = 0, key: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """Start a training on a zip of images, one folder per class, or on the built-in data. 0: use the guide's value.

        ``key`` is a secret that you choose: on a network, only those who give it see this training.
        """
        settings = Settings.checked(kind, method, base, steps, learning_rate, seed=seed)
        return said(studio.trainings.start(key, settings, sent.path(images) if images else None))

    def trainings(request: gr.Request, key: str = "") -> list[dict[str, Any]]:
        """The progress of each training. Adapters of finished trainings are added to this session."""
        studio.adopt(_session(studio, request), key)
        return [said(training) for training in studio.trainings.of(key)]

    def stop_training(request: gr.Request, name: str, key: str = "") -> dict[str, Any]:
        """Have a training write a checkpoint and end."""
        studio.trainings.stop(key, name)
        return said(studio.trainings.get(key, name))

    def resume_training(request: gr.Request, name: str, key: str = "") -> dict[str, Any]:
        """Continue a training that was stopped."""
        return said(studio.trainings.resume(key, name))

    return [(train, False), (trainings, False), (stop_training, False), (resume_training, False)]


def _session(studio: Studio, request: gr.Request) -> Session:
    return studio.session(request.session_hash)


def _answer(answer: Answer) -> dict[str, Any]:
    classes = [{"name": name, "probability": probability} for name, probability in answer.classes]
    return {"model": answer.model, "classes": classes}


def _end_of(drawing) -> Drawing:
    *_, end = drawing
    if end.state is not State.FINISHED:
        raise InputError("another drawing of this session came in between")
    return end
