"""The app over its API, as scripts use it: the same flows as in the browser."""

import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import onelora_vision.embedded
from onelora_vision.adapters.files import read_adapter

DRAW = [["2"], 3, False, 1, 2, "dpm++", 2.5, "", True]  # classes, seed, random, images, steps, sampler, …


@pytest.fixture
def client(address, tmp_path):
    """A user of their own."""
    client = Client(address, verbose=False, download_files=str(tmp_path / "got"))
    yield client
    client.close()


def only(client, task):
    """Disable every adapter of a task."""
    for row in client.predict(api_name="/adapters"):
        if row["task"] == task:
            client.predict(row["name"], False, 1.0, api_name="/set_adapter")


def add(client, file, weight=1.0):
    """Upload an adapter and enable it alone."""
    before = {row["name"] for row in client.predict(api_name="/adapters")}
    client.predict([handle_file(file)], api_name="/upload")
    (row,) = [row for row in client.predict(api_name="/adapters") if row["name"] not in before]
    only(client, row["task"])
    client.predict(row["name"], True, weight, api_name="/set_adapter")
    return row["name"]


def draw(client):
    """What ``/draw`` ends in: pixels of base and adapted, and the files."""
    _, base, adapted, *_ = client.predict(*DRAW, api_name="/draw")
    files = [[Path(item["image"]) for item in gallery] for gallery in (base, adapted)]
    return [[np.asarray(Image.open(file)) for file in part] for part in files], files


def test_draw_save_the_mix_and_restore(client, address, make_adapter, tmp_path):
    name = add(client, make_adapter("generation", 1), 0.5)
    (base, adapted), files = draw(client)
    assert base[0].shape == (32, 32, 3) and not np.array_equal(base[0], adapted[0])
    mix = client.predict("generation", api_name="/save_mix")
    mix = Path(mix["value"] if isinstance(mix, dict) else mix)
    assert read_adapter(mix).info.extra["blend"][0]["weight"] == 0.5
    client.predict(name, True, -2.0, api_name="/set_adapter")
    restored = client.predict(handle_file(files[1][0]), api_name="/restore")
    assert 3 in restored and "dpm++" in restored
    (row,) = [row for row in client.predict(api_name="/adapters") if row["name"] == name]
    assert row["enabled"] and row["weight"] == 0.5
    assert np.array_equal(draw(client)[0][1][0], adapted[0])
    other = Client(address, verbose=False, download_files=str(tmp_path / "other"))
    add(other, mix)
    assert np.array_equal(draw(other)[0][1][0], adapted[0])
    other.close()


def test_users_at_the_same_time_get_the_pictures_they_get_alone(address, make_adapter, tmp_path):
    clients, alone, together = [], [], {}
    for seed in (1, 2, 3):
        client = Client(address, verbose=False, download_files=str(tmp_path / str(seed)))
        add(client, make_adapter("generation", seed), 0.5 * seed)
        clients.append(client)
        alone.append(draw(client)[0][1][0])
    assert len({image.tobytes() for image in alone}) == 3

    def work(number):
        together[number] = [draw(clients[number])[0][1][0] for _ in range(3)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(alone):
        assert all(np.array_equal(expected, found) for found in together[number])
    for client in clients:
        client.close()


def test_a_bad_file_is_an_error_in_words_and_the_session_goes_on(client, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"<b>nothing</b>")
    before = client.predict(api_name="/adapters")
    with pytest.raises(AppError, match=r"x.safetensors: not a whole safetensors file"):
        client.predict([handle_file(tmp_path / "x.safetensors")], api_name="/upload")
    assert client.predict(api_name="/adapters") == before
    with pytest.raises(AppError, match="could not be fetched from the hub"):
        client.predict("some/adapter", api_name="/hub")
    with pytest.raises(AppError, match="no adapter"):
        client.predict("nobody", True, 1.0, api_name="/set_adapter")


def test_grid_depth_classes_and_details(client, make_adapter, tmp_path):
    for task in ("generation", "depth", "classification"):
        add(client, make_adapter(task, 1))
    said, picture, _ = client.predict("adapter weight", "0, 1", "seed", "1, 2", *DRAW, api_name="/grid")
    assert "Drawn" in said and Image.open(picture).width > 200
    Image.new("RGB", (40, 30), "gray").save(tmp_path / "p.png")
    said, pair, *maps, _ = client.predict(handle_file(tmp_path / "p.png"), api_name="/depth")
    assert len(pair) == 2 and all(maps) and "median" in said
    answers = client.predict(handle_file(tmp_path / "p.png"), api_name="/classify")
    assert answers.count("<section") == 2
    table = client.predict([handle_file(tmp_path / "p.png")] * 2, api_name="/classify_all")
    table = table.get("value", table)
    assert len(table["data"]) == 2 and table["headers"][:2] == ["picture", "base"]
    facts, plot = client.predict(client.predict(api_name="/adapters")[0]["name"], api_name="/details")
    assert "fingerprint" in facts and plot


def test_only_this_machine_is_served_and_only_with_the_password(serve_app):
    url = serve_app("--auth", "me:secret", "--max_upload_mb", "1")
    assert url.startswith("http://127.0.0.1:")
    outside = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for host in {host for host in outside if not host.startswith("127.")}:
        with pytest.raises(OSError):
            socket.create_connection((host, int(url.rstrip("/").rsplit(":", 1)[1])), timeout=2)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}config")
    client = Client(url, auth=("me", "secret"), verbose=False)
    assert len(client.predict(api_name="/adapters")) >= 3
    client.close()


def test_files_outside_are_not_served_and_large_uploads_are_refused(address, serve_app, tmp_path):
    for path in ("/etc/passwd", str(Path(__file__)), str(Path(__file__).parents[2] / "pyproject.toml")):
        with pytest.raises(urllib.error.HTTPError, match=r"403|404"):
            urllib.request.urlopen(f"{address}gradio_api/file={path}")
    client = Client(address, verbose=False)
    before = client.predict(api_name="/adapters")
    inside = onelora_vision.embedded.ADAPTERS / "handwriting-dit" / "adapter_model.safetensors"
    with pytest.raises(AppError):
        client.predict([{"path": str(inside), "meta": {"_type": "gradio.FileData"}}], api_name="/upload")
    assert client.predict(api_name="/adapters") == before
    client.close()
    url = serve_app("--max_upload_mb", "1")
    (tmp_path / "large.safetensors").write_bytes(bytes(1_100_000))
    client = Client(url, verbose=False)
    with pytest.raises(Exception, match=r"(?i)maximum|size|413|large"):
        client.predict([handle_file(tmp_path / "large.safetensors")], api_name="/upload")
    client.close()


def test_flags_that_make_no_sense_are_one_line(capsys):
    from app.__main__ import main

    for flags, message in (
        (["--auth", "me"], "expected USER:PASSWORD"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--bases", "/nowhere"], "--bases /nowhere: no such folder"),
        (["--adapters", "/nowhere"], "--adapters /nowhere: no such folder"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(flags)
        assert caught.value.code == 2 and message in capsys.readouterr().err
