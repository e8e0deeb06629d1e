"""The Train tab in a real browser: a folder of images becomes an adapter that draws, and nothing of a run is lost."""

import json
import re
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
from PIL import Image, ImageDraw
from processes import free_port

from app.trainings.guide import KINDS, METHODS, Settings
from app.trainings.run import Training
from onelora_vision.adapters.file import read_adapter

try:
    from playwright.sync_api import expect
except ImportError:  # the browser's fixture says so
    expect = None

WAIT = 300_000  # milliseconds that a loaded machine may take


@pytest.fixture
def open_page(browser):
    """Open an address as a user; users of the same context share what their browser keeps."""
    contexts = []

    def open_it(address, context=None, **options):
        if context is None:
            context = browser.new_context(viewport={"width": 1280, "height": 900}, **options)
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        expect.set_options(timeout=WAIT)
        page.goto(address)
        expect(page.locator("#classes")).to_contain_text("Mix:")
        page.get_by_role("tab", name="Train").click()
        return page

    yield open_it
    for context in contexts:
        context.close()


@pytest.fixture
def shapes(tmp_path):
    """A folder of pictures in two classes."""
    for name in ("circle", "square"):
        (tmp_path / "my shapes" / name).mkdir(parents=True)
        for number in range(4):
            image = Image.new("RGB", (40, 40), "white")
            draw = ImageDraw.Draw(image)
            (draw.ellipse if name == "circle" else draw.rectangle)((5 + number, 5, 30 + number, 30), fill="black")
            image.save(tmp_path / "my shapes" / name / f"{number}.png")
    return tmp_path / "my shapes"


@pytest.fixture
def finished(tmp_path, make_adapter):
    """The folder of an app in which a training has finished."""
    output = tmp_path / "output"
    run = Training(
        output / "trainings" / "2026-01-02 10.00.00 dit",
        Settings.checked(next(iter(KINDS)), next(iter(METHODS)), steps=2),
        "embedded",
        title="shapes-dit",
        counts={"circle": 3, "square": 4},
    )
    (run.folder / "run" / "logs").mkdir(parents=True)
    run.write()
    make_adapter("generation", 5, place=run.adapter)
    rows = [{"step": step, "time": step, "train/loss": 1 / step} for step in (1, 2)]
    (run.folder / "run" / "logs" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {"before": {"fd_embedded": 8.0}, "after": {"fd_embedded": 2.0}}
    (run.folder / "run" / "results.json").write_text(json.dumps({"phase": "complete", "metrics": metrics}))
    Image.new("RGB", (60, 30), "teal").save(run.folder / "run" / "samples.png")
    return output


def test_a_finished_training_is_found_again_used_and_kept_apart_from_foreign_files(serve_app, open_page, finished):
    page = open_page(serve_app("--output_dir", str(finished)))
    expect(page.locator("#train-said")).to_contain_text("Finished after 2 of 2 steps")
    expect(page.locator("#train-said")).to_contain_text("7 images, 2 classes (circle, square)")
    expect(page.locator("#train-said")).to_contain_text("distance to the real images: 8 → 2, lower is better")
    expect(page.locator("#train-picture img")).to_be_visible()
    expect(page.locator("#train-curve canvas, #train-curve svg").first).to_be_visible()
    expect(page.locator("#train-stop")).to_be_disabled()
    expect(page.locator("#train-resume")).to_be_disabled()
    expect(page.get_by_role("checkbox", name="shapes-dit")).not_to_be_checked()
    page.locator("#train-use").click()
    expect(page.get_by_role("tab", name="Generate")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("checkbox", name="shapes-dit")).to_be_checked()
    expect(page.get_by_role("checkbox", name="handwriting-dit")).not_to_be_checked()
    expect(page.locator("#classes")).to_contain_text("Mix: 1 × shapes-dit")
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-delete").click()
    expect(page.locator(".toast-body").last).to_contain_text("press the button again")
    page.get_by_role("button", name="Delete for good").click()
    expect(page.locator(".toast-body").last).to_contain_text("did not write")
    assert (finished / "trainings").is_dir()


def test_a_folder_is_packed_on_the_page_and_counted(address, open_page, shapes):
    page = open_page(address)
    (shapes / "circle" / "notes.txt").write_text("no image")
    page.locator("#train-images-folder").set_input_files(str(shapes))
    expect(page.locator("#train-found")).to_contain_text("8 images, 2 classes (circle, square)")
    page.locator("#train-images-folder").set_input_files(str(shapes / "circle"))  # another one in its place
    expect(page.locator("#train-found")).to_contain_text("4 images, 1 class (circle)")
    page.get_by_label("Recognise the classes").check()
    expect(page.locator("#train-steps input")).to_have_value("200")


def test_what_cannot_be_trained_on_is_said_where_it_was_chosen(address, open_page, tmp_path):
    page = open_page(address)
    said, run = page.locator(".toast-body").last, page.locator("#train-run input").input_value()
    (tmp_path / "x.zip").write_bytes(b"no zip")
    page.locator("#train-images input[type=file]").set_input_files(str(tmp_path / "x.zip"))
    expect(page.locator("#train-found")).to_contain_text("Not taken: x.zip: ")
    for field, value, words in (
        ("#train-steps", "1.5", "steps 1.5: must be a whole number"),
        ("#train-steps", "", "steps is empty: enter a whole number"),
        ("#train-seed", "-1", "seed -1: must be from 0 to"),
        ("#train-rate", "0", "learning rate: enter a number greater than 0"),
    ):
        before = page.locator(f"{field} input").input_value()
        page.locator(f"{field} input").fill(value)
        page.locator(f"{field} input").press("Tab")
        page.locator("#train-start").click()
        expect(said).to_contain_text(words)
        page.locator(f"{field} input").fill(before)
    assert page.locator("#train-run input").input_value() == run


def test_on_a_network_training_must_be_allowed_and_everybody_sees_their_own(
    serve_app, open_page, finished, monkeypatch
):
    monkeypatch.setattr("app.__main__.is_own_machine", lambda host: False)
    page = open_page(serve_app("--output_dir", str(finished)))
    expect(page.locator("#train-refused")).to_contain_text("operator can allow it with --allow_training")
    expect(page.locator("#train-start")).to_be_disabled()
    page = open_page(serve_app("--output_dir", str(finished), "--allow_training"))
    expect(page.locator("#train-said")).to_contain_text("No training yet")  # that one is not theirs
    expect(page.locator("#train-start")).to_be_enabled()
    assert page.get_by_role("checkbox", name="shapes-dit").count() == 0


def serve(output):
    """The app as a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "app", "--port", str(port), "--output_dir", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert str(port) in process.stdout.readline()
    return process, f"http://127.0.0.1:{port}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_round_train_stop_restart_resume_compare_blend_download(open_page, shapes, tmp_path):
    output, server = tmp_path / "output", None
    try:
        server, address = serve(output)
        page = open_page(address, accept_downloads=True)
        context = page.context
        page.locator("#train-images-folder").set_input_files(str(shapes))
        expect(page.locator("#train-found")).to_contain_text("8 images")
        page.locator("#train-steps input").fill("600")
        page.locator("#train-steps input").press("Tab")
        page.locator("#train-start").click()
        expect(page.locator("#train-said")).to_contain_text(re.compile(r"step \d+ of 600, .* left"))
        expect(page.locator("#train-curve canvas, #train-curve svg").first).to_be_visible()
        server.kill()  # the run goes on
        server.wait()
        (run,) = [Training.read(folder) for folder in (output / "trainings").iterdir()]
        assert run.is_running()
        server, address = serve(output)
        page = open_page(address, context)
        expect(page.locator("#train-said")).to_contain_text(re.compile(r"step \d+ of 600, .* left"))
        page.reload()
        page.get_by_role("tab", name="Train").click()
        expect(page.locator("#train-said")).to_contain_text(re.compile(r"step \d+ of 600"))
        page.locator("#train-stop").click()
        expect(page.locator("#train-said")).to_contain_text("Stopped after")
        assert not run.is_running() and list((run.folder / "run").glob("checkpoint-*"))
        said = json.loads((run.folder / "job.json").read_text())
        said["settings"]["steps"] = len(run.metrics()) // 2 + 40  # a shorter way to its end
        (run.folder / "job.json").write_text(json.dumps(said))
        page.locator("#train-resume").click()
        expect(page.locator("#train-said")).to_contain_text("Finished after")
        page.locator("#train-use").click()
        expect(page.locator("#classes")).to_contain_text("Mix: 1 × my shapes-dit")
        page.locator("#draw").click()
        expect(page.locator("#draw-progress")).to_contain_text("Drawn: 4 images")
        page.locator("#strengths-generation").get_by_role("button", name="Half").click()
        expect(page.locator("#classes")).to_contain_text("Mix: 0.5 × my shapes-dit")
        page.get_by_role("button", name="Save this mix").click()
        with page.expect_download() as download:
            page.locator("#mix-file a[download]").first.click()
        download.value.save_as(tmp_path / "mix.safetensors")
        assert read_adapter(tmp_path / "mix.safetensors").info.extra["blend"][0]["weight"] == 0.5
        page.get_by_role("tab", name="Train").click()
        page.locator("#train-delete").click()
        page.get_by_role("button", name="Delete for good").click()
        expect(page.locator("#train-said")).to_contain_text("No training yet")
        assert list((output / "trainings").iterdir()) == []
    finally:
        if server is not None:
            server.send_signal(signal.SIGTERM)
            server.wait()
        for job in output.glob("trainings/*/job.json"):
            process = json.loads(job.read_text())["process"]
            if process and psutil.pid_exists(process[0]):
                psutil.Process(process[0]).kill()
        shutil.rmtree(output, ignore_errors=True)
