"""The pictures of the app in the documentation: ``python docs/images/make_app_pictures.py`` (needs chromium)."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from onelora_vision.data.classes.formats import open_class_images

FOLDER = Path(__file__).parent
SIZE = {"width": 1280, "height": 1180}
WAIT = 90_000  # milliseconds that a slow machine may take for a drawing


def draw(page: Page) -> None:
    page.get_by_text("An example: the base").wait_for(timeout=WAIT)
    page.locator("#strengths-generation").get_by_role("button", name="Half").click()
    page.get_by_text("Drawn:").first.wait_for(timeout=WAIT)
    page.wait_for_timeout(4000)
    page.screenshot(path=FOLDER / "app-generate.png")


def estimate(page: Page) -> None:
    page.get_by_role("tab", name="Depth").click()
    page.get_by_text("An example, a rendered street").wait_for(timeout=WAIT)
    page.wait_for_timeout(3000)
    page.screenshot(path=FOLDER / "app-depth.png", full_page=True)


def classify(page: Page) -> None:
    page.get_by_role("tab", name="Classify").click()
    page.locator("#answers .card").first.wait_for(timeout=WAIT)
    page.get_by_role("button", name="Many pictures").last.click()
    with tempfile.TemporaryDirectory() as folder:
        images = open_class_images("embedded", split="test")
        files = [Path(folder) / f"digit-{number}.png" for number in range(4)]
        for number, file in enumerate(files):
            images.read(7 + 300 * number).save(file)
        page.locator("#class-files input[type=file]").set_input_files(files)
        page.get_by_text("digit-3").first.wait_for(timeout=WAIT)
        page.locator("#classify-all").click()
        page.locator("#class-table img").nth(3).wait_for(timeout=WAIT)
    page.wait_for_timeout(2000)
    page.screenshot(path=FOLDER / "app-classify.png", full_page=True)


def train(page: Page) -> None:
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-start").click()
    page.get_by_text(re.compile(r"step 1[5-9]\d of 400")).wait_for(timeout=10 * WAIT)
    page.wait_for_timeout(3000)
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(500)
    page.screenshot(path=FOLDER / "app-train.png")
    page.locator("#train-stop").click()
    page.get_by_text("Stopped after").wait_for(timeout=WAIT)


def show_details(page: Page) -> None:
    page.get_by_role("tab", name="Details").click()
    page.get_by_role("button", name="Details").first.click()
    page.get_by_text("Norms per layer").first.wait_for(timeout=WAIT)
    page.wait_for_timeout(4000)
    page.screenshot(path=FOLDER / "app-adapters.png")


def make_small(path: Path) -> None:
    """Leave a picture 256 colours, spread over all that it has."""
    Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        path, optimize=True
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as output:
        take_all(output)
    for path in FOLDER.glob("app-*.png"):
        make_small(path)


def take_all(output: str) -> None:
    command = [sys.executable, "-m", "app", "--port", "7899", "--output_dir", output]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        while "7899" not in (server.stdout.readline() or "7899"):
            pass
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE)
            page.goto("http://127.0.0.1:7899", timeout=WAIT)
            for take in (draw, estimate, classify, show_details, train):
                take(page)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
