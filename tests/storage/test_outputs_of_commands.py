"""Whatever a command is told to write to, it leaves every file alone that this program did not write."""

import contextlib
import io
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_hosts import make_adapter, save_base

from onelora_vision.adapters import export as exporting
from onelora_vision.cli import main
from onelora_vision.storage.files import ASIDE_PREFIX, TEMPORARY_PREFIX

HOST = "diffusers"
COMMANDS = {
    "blend": ["blend", "in/a:1", "in/b:0.5", "-o"],
    "import": ["import", "in/lora", "-o"],
    "export": ["export", "in/a", "--base", "in/pipeline", "--to", "peft-lora", "-o"],
    "export merged": ["export", "in/a", "--base", "in/pipeline", "--to", "merged", "-o"],
    "convert back": ["convert", "in/pipeline"],
    "convert": ["convert", "in/original.pt", "--vae", "in/pipeline/vae"],
    "inspect": ["inspect", "in/a", "--plot"],
    "params": ["params", "--backbone", "in/pipeline", "--method", "onelora", "--plot"],
    "runs": ["runs", "in", "--html"],
    "card": ["card"],
    "sample": ["sample", "in/a", "--base", "in/pipeline", "--classes=0", "--num_images=1", "--steps=1", "-o"],
    "predict": ["predict", "--adapter", "in/depth", "--base", "in/depth-base", "in/picture.png", "-o"],
}

OUTPUTS = [
    ".", "./", "..", "../", "/", "d", "d/", "d/e", "./d/../d", "d/../..", "new", "new/deeper", "file", "file/x",
    "file.safetensors", "file.png", "file.pt", "new.safetensors", "new.png", "new.pt", "new.html", "file.html", "link", "link/new", "dangling",
    "filelink.png", "in", "in/a", "in/a/new", "in/a/adapter_model.safetensors", "in/pipeline", "in/pipeline/vae/x",
    "in/original.pt", "drawn", "drawn/sheets", "predicted", "earlier", "earlier.safetensors", "earlier/", "edited", "full", "/dev", "/proc",
]  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Inputs of all commands, earlier outputs of some, and files that a user might have."""
    root = tmp_path_factory.mktemp("template")
    patch = pytest.MonkeyPatch()
    patch.chdir(root)
    patch.setattr(exporting, "_reloaded", lambda *_: 0.0)  # this is about places; the proof is tested with the exports
    make_adapter(Path("in/a"), HOST, base_fingerprint="", whole=False)
    make_adapter(Path("in/b"), HOST, seed=2, base_fingerprint="", whole=False)
    save_base(HOST, Path("in/pipeline"))
    make_adapter(Path("in/depth"), "transformers", base_fingerprint="", whole=False)
    save_base("transformers", Path("in/depth-base"))
    Image.new("RGB", (30, 20)).save("in/picture.png")
    assert command("convert back", "in/original.pt")[0] == 0
    assert command("export", "in/lora")[0] == 0
    assert command("blend", "earlier")[0] == command("blend", "earlier.safetensors")[0] == 0
    assert command("blend", "edited")[0] == command("blend", "full")[0] == 0
    assert command("sample", "drawn")[0] == command("predict", "predicted")[0] == 0
    (root / "predicted" / "notes.txt").write_text("mine")
    (root / "edited" / "README.md").write_text("my own words")
    (root / "full" / "notes.txt").write_text("mine")
    for name in ("d/e/note.txt", "d/x.png", "file", "file.safetensors", "file.png", "file.pt", "file.html"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"mine: {name}")
    (root / "link").symlink_to("d")
    (root / "filelink.png").symlink_to("file.png")
    (root / "dangling").symlink_to("nowhere")
    yield root
    patch.undo()


def command(name: str, output: str, *more: str) -> tuple[int, str]:
    """Exit code and stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            main([*COMMANDS[name], output, *more])
        except SystemExit as ended:
            return ended.code, errors.getvalue()
    raise AssertionError("a command ends with an exit code")


def contents(root: Path) -> dict[str, bytes | str]:
    """Name -> bytes of each file, target of each link."""
    return {
        str(path.relative_to(root)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in root.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def ours(file: str, name: str) -> bool:
    """Whether the template's file was written by a command and not changed since, so that command ``name`` may replace it."""
    if name == "card" and file in ("full/README.md", "full/.onelora-files"):  # written anew beside the notes
        return True
    places = ("earlier", "drawn/", "predicted/", "in/a/", "in/b/", "in/lora/", "in/depth/", "in/original.pt")
    return file.startswith(places) and file != "predicted/notes.txt"


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(COMMANDS)),
    output=st.sampled_from(OUTPUTS),
    absolute=st.booleans(),
    overwrite=st.booleans(),
    locked=st.booleans(),
)
def test_files_of_others_stay_as_they_are(template, name, output, absolute, overwrite, locked):
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        root = Path(shutil.copytree(template, Path(place) / "work", symlinks=True))
        (Path(place) / "outside.txt").write_text("mine")
        if locked:
            (root / "d").chmod(0o500)
        patch.chdir(root)
        before = contents(Path(place))
        given_path = output if not absolute else os.path.join(root, output)
        code, errors = command(name, given_path, *(["--overwrite"] if overwrite and name != "card" else []))
        (root / "d").chmod(0o700)
        after = contents(Path(place))
    changed = {file for file in before if after.get(file) != before[file]}
    foreign = {file for file in changed if not ours(file.removeprefix("work/"), name)}
    assert not foreign, f"{name} {given_path}: {sorted(foreign)}"
    assert not [file for file in after if TEMPORARY_PREFIX in file or ASIDE_PREFIX in file]
    if code:
        assert code in (1, 2) and errors.count("\n") == 1 and errors.startswith("error: "), errors
        assert after == before
    elif name != "card":
        assert not changed or overwrite
