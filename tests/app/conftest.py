"""Adapters of the embedded bases, made on the spot: what ships may be trained anew."""

import atexit
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from processes import free_port

from onelora_vision.adapters.bases import load_base
from onelora_vision.adapters.file import save_adapter
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.depth_anything import depth_adaptation
from onelora_vision.backbones.dit import dit_adaptation
from onelora_vision.backbones.vit import vit_adaptation
from onelora_vision.methods.apply import apply_method
from onelora_vision.methods.names import find_method

# One for all apps of this process, as gradio reads it once, when it is imported.
os.environ["GRADIO_TEMP_DIR"] = tempfile.mkdtemp(prefix="gradio-")
atexit.register(shutil.rmtree, os.environ["GRADIO_TEMP_DIR"], ignore_errors=True)

ADAPTATIONS = {"generation": dit_adaptation, "depth": depth_adaptation, "classification": vit_adaptation}
PLACES = {"generation": "embedded", "depth": "embedded/depth", "classification": "embedded"}


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory):
    """Write an adapter with random values for an embedded base: ``make("generation", seed=1, method="lora")``."""

    def make(task, seed=1, method="onelora", class_names=("1", "2", "A"), place=None, size=0.05, base=None):
        info = AdapterInfo(task, find_method(method).name, base or PLACES[task])
        if task == "depth":
            info.extra = {"max_depth": 40}
        else:
            info.class_names = list(class_names)
        base = load_base(info)
        info.base_fingerprint = base.fingerprint()
        if base.objective is not None:
            info.extra["objective"] = str(base.objective)
        model = apply_method(base.model, method, ADAPTATIONS[task](base.model), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += (
                    size * torch.randn(parameter.shape, generator=generator) * parameter.abs().mean().clamp(0.1)
                )
        place = place or tmp_path_factory.mktemp("adapters") / f"{task}-{method}-{seed}.safetensors"
        return save_adapter(model, place, info)

    return make


@pytest.fixture(scope="session")
def serve_app(tmp_path_factory):
    """Open the real app on a free port: flags -> its address."""
    from app.__main__ import parse, serve

    pages = []

    def start(*flags):
        folder = tmp_path_factory.mktemp("app")
        output = [] if "--output_dir" in flags else ["--output_dir", str(folder / "output")]
        arguments = parse(["--port", str(free_port()), *output, *flags]), folder
        # In a thread of its own, as a browser's event loop may be running in this one.
        with ThreadPoolExecutor(1) as pool:
            pages.append(pool.submit(serve, *arguments, block=False).result())
        return pages[-1].local_url

    yield start
    for page in pages:
        page.close(verbose=False)


@pytest.fixture(scope="session")
def address(serve_app):
    """The address of the app with its own adapters and bases."""
    return serve_app()


@pytest.fixture(scope="session")
def browser():
    """Chromium, headless. Without one the tests are skipped, unless ONELORA_REQUIRE_BROWSER=1 asks for it."""
    unavailable = pytest.fail if os.environ.get("ONELORA_REQUIRE_BROWSER") == "1" else pytest.skip
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("the tests in a browser need the playwright package")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    path = next((path for path in found if path), None)
    if path is None:
        unavailable("the tests in a browser need Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
