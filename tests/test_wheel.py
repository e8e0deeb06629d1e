"""The wheel is the whole product: built from the sdist, installed apart from the checkout, and used from an empty folder.

python -m pytest -m slow tests/test_wheel.py
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(*command, **options):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The sdist and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    (file,) = dist.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """The ``bin`` of a fresh environment with the wheel, and this environment's packages for what it needs."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(place, with_pip=False)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    run(sys.executable, "-m", "pip", "--python", place, "install", "--quiet", "--no-deps", "--no-index", wheel)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin"


@pytest.fixture
def anywhere(tmp_path, monkeypatch):
    """An empty folder, with nothing of the checkout on the path."""
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_description_is_one_that_a_package_index_shows(dist):
    run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir())


def test_one_name_goes_into_site_packages_and_every_file_of_the_checkout_with_it(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"onelora_vision"}
    inside = {
        "onelora_vision": "onelora_vision",
        "train_scripts": "onelora_vision/train_scripts",
        "app": "onelora_vision/app",
    }
    tracked = run("git", "ls-files", *inside, cwd=ROOT).splitlines()
    for file in tracked:
        top, _, rest = file.partition("/")
        assert f"{inside[top]}/{rest}" in names, file
    assert wheel.stat().st_size < 12e6


def test_the_jobs_recipes_and_commands_work_from_an_empty_folder(scripts, anywhere):
    where = run(scripts / "python", "-c", "import onelora_vision; print(onelora_vision.__file__)")
    assert Path(where.strip()).is_relative_to(scripts.parent)
    quick = ["--fid_num_samples", "20", "--num_validation_images", "1", "--report_to", "none"]
    run(scripts / "onelora", "train", "dit", "--max_train_steps", "2", *quick, "--output_dir", "out")
    assert json.loads((anywhere / "out" / "results.json").read_text())["phase"] == "complete"
    run(scripts / "onelora", "sample", "out/adapter", "--classes", "3", "-o", "images")
    assert list((anywhere / "images").rglob("*.png"))
    names = [row["name"] for row in json.loads(run(scripts / "onelora", "recipes", "dit", "--json"))]
    assert "food101-xl2-onelora" in names
    failed = subprocess.run(
        [scripts / "onelora", "train", "classification", "--config", "cifar100-vit-b16", "--dry_run", "--data_dir", "none"],
        capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert failed.returncode == 2 and len(failed.stderr.splitlines()) == 1, failed.stderr  # no data, and one line


def test_the_app_opens(scripts, anywhere):
    with subprocess.Popen(
        [scripts / "onelora", "app", "--port", "7993"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            address = re.search(r"http://\S+", line)
            assert address, line
            with urllib.request.urlopen(address[0]) as page:
                assert "gradio" in page.read().decode()
        finally:
            process.terminate()


def test_a_missing_extra_is_one_line_with_the_command(scripts, anywhere):
    code = """
import sys
sys.modules["gradio"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "gradio" else find(name, *rest)
from onelora_vision.cli import main
main(["app"])
"""
    done = subprocess.run([scripts / "python", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: the app needs the package gradio: pip install 'onelora_vision[app]'"
