"""More of the Depth tab: points in space, and batches of pictures."""

from pathlib import Path

import gradio as gr

from ..depth import ANGLE, MAX_PICTURES, DepthBatch
from ..depth_maps import Look
from ..kept import Number
from ..points import MAX_ANGLE, MIN_ANGLE
from ..runs import Runs, State
from ..studio import Studio
from .common import MODEL, announce, bar, for_this_picture, hint, left_out, left_out_line, toasts
from .kept import KeptSettings

POINTS = hint(
    "Each pixel at its depth in front of a camera. A picture does not say how wide its camera saw: set that here."
)
MANY = hint(f"Up to {MAX_PICTURES} pictures: a map of each, and a zip with the maps and the depth in millimetres.")


#: The values of `build_points`'s widgets without points.
NO_POINTS = (None, gr.update(value=None, interactive=False))


def build_points(studio: Studio, picture: gr.Image, kept: KeptSettings) -> tuple[gr.Model3D, gr.DownloadButton]:
    """The folded part that shows the last estimate as points; returns the points and their download."""
    with gr.Accordion("3D points", open=False, elem_id="depth-3d"):
        gr.HTML(POINTS)
        angle = gr.Slider(MIN_ANGLE, MAX_ANGLE, ANGLE, step=1, label="Field of view in degrees", elem_id="depth-angle")
        make = gr.Button("Show the points", elem_id="depth-points")
        model = gr.Model3D(
            label="Points", display_mode="point_cloud", interactive=False, height=420, elem_id="depth-model",
            clear_color=(0.06, 0.09, 0.16, 1.0),
        )  # fmt: skip
        file = gr.DownloadButton("Download the points (.glb)", interactive=False, elem_id="depth-glb")

    kept.keep("depth.angle", angle, Number(MIN_ANGLE, MAX_ANGLE))

    @toasts(studio, "No points")
    @for_this_picture(studio, "depth", 2)
    def run(path: str | None, degrees: float, request: gr.Request):
        session = studio.session(request.session_hash)
        points = str(studio.depth.points(session, Path(path) if path else None, float(degrees)))
        return points, gr.update(value=points, interactive=True)

    make.click(run, [picture, angle], [model, file], api_visibility="private", **MODEL)
    return model, file


def build_batch(studio: Studio, look: list) -> None:
    """The folded part for many pictures.

    Args:
        look: the widgets for the colours and for inverse depth.
    """
    with gr.Accordion("Many pictures: maps and a zip", open=False, elem_id="depth-batch"):
        many = gr.File(label="Pictures", file_count="multiple", file_types=["image"], elem_id="depth-files")
        with gr.Row():
            start = gr.Button("Estimate all", variant="primary", elem_id="estimate-all")
            cancel = gr.Button("Cancel", elem_id="depth-cancel")
        said = gr.HTML(MANY, elem_id="depth-batch-said")
        maps = gr.Gallery(
            label="Maps", format="png", object_fit="contain", height="auto", interactive=False, visible=False,
            buttons=["download"], elem_id="depth-maps", elem_classes=["drawn", "wide"],
        )  # fmt: skip
        archive = gr.DownloadButton("Download all (zip)", interactive=False, elem_id="depth-zip")
    ticket = gr.State(0)

    @toasts(studio, "Depth not estimated")
    def run(request: gr.Request, number: int, paths: list[str] | None, colors: str, inverse: bool):
        session, files = studio.session(request.session_hash), [Path(path) for path in paths or []]
        for batch in studio.depth.estimate_many(session, files, Look(colors, inverse), number):
            if batch.state is State.FINISHED:
                left_out(batch.refused)
            yield [gr.skip()] * 3 if batch.state is State.SUPERSEDED else _shown(batch)

    def runs(request: gr.Request) -> Runs:
        return studio.session(request.session_hash).depths

    announced = announce(start, cancel, ticket, runs)
    options = {"api_visibility": "private", "trigger_mode": "multiple"}
    announced.then(run, [ticket, many, *look], [said, maps, archive], **options, **MODEL)


def _shown(batch: DepthBatch) -> tuple:
    """Text, gallery, download."""
    ends = {
        State.FINISHED: hint(f"{batch.total} pictures. The zip has their maps, and their depth in millimetres.")
        + left_out_line(batch.refused),
        State.CANCELLED: hint("Cancelled."),
        State.FAILED: hint("Nothing was estimated."),
    }
    text = ends.get(batch.state) or bar(batch.done, batch.total, f"{batch.done} of {batch.total} pictures")
    pictures = [(str(picture.image), picture.caption) for picture in batch.pictures]
    done = gr.update(value=batch.archive and str(batch.archive), interactive=batch.archive is not None)
    return text, gr.update(value=pictures, visible=bool(pictures)), done
