"""The pictures of the app in the documentation: ``python docs/images/make_app_pictures.py`` (needs chromium)."""

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).parent
SIZE = {"width": 1280, "height": 960}
WAIT = 90_000  # milliseconds that a slow machine may take for a drawing


def draw(page: Page) -> None:
    field = page.locator("#classes input")
    field.wait_for(timeout=WAIT)
    for name in "347":
        field.click()
        field.press_sequentially(name)
        field.press("Enter")
    page.locator("#draw").click()
    page.locator("#of-mix img").first.wait_for(timeout=WAIT)
    page.wait_for_timeout(5000)
    page.screenshot(path=FOLDER / "app-generate.png")


def estimate(page: Page) -> None:
    page.get_by_role("tab", name="Depth").click()
    page.get_by_role("button", name="Example").first.click()
    page.wait_for_timeout(3000)
    page.get_by_role("button", name="Estimate depth").click()
    page.get_by_text("difference").first.wait_for(timeout=WAIT)
    page.wait_for_timeout(2000)
    page.screenshot(path=FOLDER / "app-depth.png", full_page=True)


def show_details(page: Page) -> None:
    page.get_by_role("tab", name="Details").click()
    page.get_by_role("button", name="Details").first.click()
    page.get_by_text("Norms per layer").first.wait_for(timeout=WAIT)
    page.wait_for_timeout(4000)
    page.screenshot(path=FOLDER / "app-adapters.png")


def main() -> None:
    command = [sys.executable, "-m", "app", "--port", "7899"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        while "7899" not in (server.stdout.readline() or "7899"):
            pass
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE)
            page.goto("http://127.0.0.1:7899", timeout=WAIT)
            for take in (draw, estimate, show_details):
                take(page)
            browser.close()
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
