"""Drawings that are kept: what is shown, limits, and that nothing else is deleted."""

import shlex

import numpy as np
import pytest
from PIL import Image

from app.command import command_of
from app.drawing import Request
from app.history import History
from app.studio import Studio
from onelora_vision.cli.main import main as onelora
from onelora_vision.errors import InputError


@pytest.fixture
def pictures(tmp_path):
    """Four small pictures of a drawing."""
    files = [tmp_path / f"000{number}-00000-adapted.png" for number in range(4)]
    for number, file in enumerate(files):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(file)
    return files


def test_newest_come_first_and_starred_ones_stay(tmp_path, pictures):
    history = History(tmp_path / "kept", most=2)
    first = history.add("Drawn: 4 images, 2 steps, a.", pictures, [])
    assert history.star(first.name).starred
    for text in "bcd":
        history.add(f"Drawn: 4 images, 2 steps, {text}.", pictures[:1], pictures[1:])
    assert [one.text[-2] for one in history.shown()] == ["d", "c", "a"]
    assert not history.star(first.name).starred
    sheet = np.asarray(Image.open(history.get(first.name).sheet))
    assert sheet.shape == (130, 130, 3) and sheet[0, 0, 0] == 0 and sheet[-1, -1, 0] == 180
    history.remove(first.name)
    assert len(list((tmp_path / "kept").iterdir())) == 2
    for name in (first.name, None, "../kept", "."):
        with pytest.raises(InputError, match=r"no drawing|choose a drawing"):
            history.get(name)


def test_files_of_others_are_kept_and_damaged_folders_passed_by(tmp_path, pictures):
    history = History(tmp_path / "kept")
    assert history.shown() == [] and not (tmp_path / "kept").exists()
    kept = history.add("Drawn: 1 images, 2 steps, a.", pictures[:1], [])
    (kept.folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"contains notes\.txt, which this app did not write"):
        history.remove(kept.name)
    assert kept.first.exists() and (kept.folder / "notes.txt").exists()
    (kept.folder / "drawing.json").write_text(
        '{"pictures": ["../../x.png"], "others": [], "text": "", "starred": false}'
    )
    assert history.shown() == []


def test_strangers_keep_their_own_and_one_person_finds_all(tmp_path, pictures):
    shared, alone = Studio(root=tmp_path / "a"), Studio(root=tmp_path / "b", drawings=tmp_path / "kept")
    for studio in (shared, alone):
        studio.root.mkdir(exist_ok=True)
        studio.session("me").history.add("Drawn: 4 images, 2 steps, a.", pictures, [])
    assert shared.session("you").history.shown() == [] and len(alone.session("you").history.shown()) == 1
    folder = shared.session("me").folder
    shared.sessions.close("me")
    assert not folder.exists()


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.25), (0.0,)])
def test_the_command_draws_the_same_pictures(tmp_path, make_adapter, weights, monkeypatch):
    studio = Studio(root=tmp_path / "root", drawings=tmp_path / "kept")
    session = studio.session("me")
    session.enabled.clear()
    for seed, weight in enumerate(weights, start=1):
        (name,), _ = studio.upload(session, [make_adapter("generation", seed)])
        session.set(name, True, weight)
    wanted = Request(("2", "A"), seed=5, num_images=2, steps=2, sampler="ddim", guidance=1.5)
    *_, drawn = studio.drawer.draw(session, wanted)
    (kept,) = session.history.shown()
    assert kept.text == drawn.text and kept.parts()[1] == tuple(picture.image.name for picture in drawn.adapted)
    place = tmp_path / "work"
    place.mkdir()
    for name, entry in session.own.items():
        (place / f"{name}.safetensors").write_bytes(entry.path.read_bytes())
    monkeypatch.chdir(place)
    lines = studio.command(session, kept).splitlines()
    assert lines == command_of(session.mix("generation"), wanted, True).splitlines()
    for line in lines:
        with pytest.raises(SystemExit, match="0"):
            onelora(shlex.split(line)[1:])
    found = sorted((place / "images").rglob("[0-9]*.png"))
    for picture, file in zip(drawn.adapted, found, strict=True):
        assert np.array_equal(np.asarray(Image.open(picture.image)), np.asarray(Image.open(file)))
