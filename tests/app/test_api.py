"""The app over its API, as scripts use it: the same flows as in the browser."""

import importlib.util
import json
import re
import socket
import threading
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import onelora_vision.embedded
from onelora_vision.adapters.file import read_adapter
from onelora_vision.cli.main import main as onelora

DRAW = {"classes": ["2"], "seed": 3, "steps": 2, "sampler": "dpm++"}
FROM_BASE = {**DRAW, "guidance_base": True}


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


def draw(client, wanted=DRAW):
    """What ``/draw`` ends in: pixels of base and adapted, and the files."""
    drawn = client.predict(**wanted, api_name="/draw")
    files = [[Path(file) for file in drawn[part]] for part in ("base", "adapted")]
    return [[np.asarray(Image.open(file)) for file in part] for part in files], files


def test_draw_save_the_mix_and_restore(client, address, make_adapter, tmp_path):
    name = add(client, make_adapter("generation", 1), 0.5)
    (base, adapted), files = draw(client)
    assert base[0].shape == (32, 32, 3) and not np.array_equal(base[0], adapted[0])
    mix = Path(client.predict("generation", api_name="/blend")["file"])
    assert read_adapter(mix).info.extra["blend"][0]["weight"] == 0.5
    client.predict(name, True, -2.0, api_name="/set_adapter")
    restored = client.predict(handle_file(files[1][0]), api_name="/restore")
    assert restored["missing_adapters"] == [] and restored["settings"].items() >= DRAW.items()
    (row,) = [row for row in client.predict(api_name="/adapters") if row["name"] == name]
    assert row["enabled"] and row["weight"] == 0.5
    assert np.array_equal(draw(client)[0][1][0], adapted[0])
    other = Client(address, verbose=False, download_files=str(tmp_path / "other"))
    add(other, mix)
    assert np.array_equal(draw(other)[0][1][0], adapted[0])
    other.close()


def test_the_base_guides_over_the_api_and_comes_back_from_the_picture(client, make_adapter):
    add(client, make_adapter("generation", 2))
    own, (guided, files) = draw(client)[0], draw(client, FROM_BASE)
    assert np.array_equal(own[0][0], guided[0][0]) and not np.array_equal(own[1][0], guided[1][0])
    assert client.predict(handle_file(files[1][0]), api_name="/restore")["settings"]["guidance_base"] is True


def test_users_at_the_same_time_get_the_pictures_they_get_alone(address, make_adapter, tmp_path):
    clients, alone, together = [], [], {}
    for seed in (1, 2):
        client = Client(address, verbose=False, download_files=str(tmp_path / str(seed)))
        add(client, make_adapter("generation", seed), 0.5 * seed)
        clients.append(client)
        alone.append(draw(client)[0][1][0])
    assert len({image.tobytes() for image in alone}) == 2

    def work(number):
        together[number] = [draw(clients[number])[0][1][0] for _ in range(2)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
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
    with pytest.raises(AppError, match="no adapter '<nobody> & co' here"):
        client.predict("<nobody> & co", True, 1.0, api_name="/set_adapter")
    for endpoint, wrong, message in (
        ("/set_adapter", {"name": "handwriting-dit", "weight": "abc"}, 'weight: "abc" must be a number'),
        ("/draw", {"classes": ["1"], "seed": 1.5}, "seed: 1.5 must be a whole number"),
        ("/draw", {"classes": None}, "classes: null must be a list"),
        ("/draw", {"classes": [1]}, "classes: 1 must be a text"),
        ("/classify", {"pictures": None}, "pictures: null must be a list"),
        ("/train", {"kind": "Recognise the classes", "learning_rate": True}, "learning_rate: true must be a number"),
    ):
        with pytest.raises(AppError, match=re.escape(message)):
            client.predict(**wrong, api_name=endpoint)


def test_grid_depth_classes_and_details(client, make_adapter, tmp_path):
    for task in ("generation", "depth", "classification"):
        add(client, make_adapter(task, 1))
    grid = client.predict("adapter weight", "0, 1", "seed", "1, 2", **DRAW, api_name="/grid")
    assert "Drawn: 4 cells" in grid["text"] and Image.open(grid["picture"]).width > 200
    Image.new("RGB", (40, 30), "gray").save(tmp_path / "p.png")
    maps = client.predict(handle_file(tmp_path / "p.png"), api_name="/depth")
    assert all(Image.open(maps[name]).width for name in ("base", "adapted", "difference", "millimetres"))
    assert "median" in maps["text"]
    rows = client.predict([handle_file(tmp_path / "p.png")] * 2, api_name="/classify")
    assert len(rows) == 2 and rows[0]["answers"][0]["model"] == "base" and len(rows[0]["answers"]) == 2
    found = client.predict(client.predict(api_name="/adapters")[0]["name"], api_name="/details")
    assert found["facts"]["base_fingerprint"] and Image.open(found["plot"]).width


def test_every_endpoint_is_named_and_typed(client):
    described = client.view_api(return_format="dict")["named_endpoints"]
    assert set(described) == {
        *(
            "/adapters",
            "/set_adapter",
            "/upload",
            "/hub",
            "/blend",
            "/details",
            "/draw",
            "/grid",
            "/restore",
            "/depth",
        ),
        *("/classify", "/train", "/trainings", "/stop_training", "/resume_training"),
    }
    for name, endpoint in described.items():
        for parameter in endpoint["parameters"]:
            assert not parameter["parameter_name"].startswith("param"), (name, parameter)
            assert parameter["python_type"]["type"] != "Any", (name, parameter)


def test_a_training_over_the_api_is_its_owners(client, tmp_path, monkeypatch):
    monkeypatch.setattr("app.trainings.run.flags_of", lambda *settings: ["dit", "--learning_rat", "1"])
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
        for name in ("a/1.png", "b/1.png"):
            archive.write(tmp_path / "1.png", name)
    images = handle_file(tmp_path / "mine.zip")
    begun = client.predict("Draw the classes", images, steps=3, key="secret", api_name="/train")
    assert begun["title"] == "mine-dit" and begun["steps"] == 3
    names = [row["name"] for row in client.predict(key="secret", api_name="/trainings")]
    assert begun["name"] in names
    client.predict(begun["name"], key="secret", api_name="/stop_training")
    with pytest.raises(AppError, match="no training 'x' of yours"):
        client.predict("x", api_name="/stop_training")
    with pytest.raises(AppError, match="files of the server are not read"):
        client.predict("Draw the classes", {"path": "/etc/passwd"}, api_name="/train")


def write_pictures(folder):
    """The same scene as users have it: 16 bits, transparency, a palette, turned by EXIF, CMYK."""
    y, x = np.mgrid[0:60, 0:100]
    grey = (x * 500 + y * 200).astype(np.uint16)
    rgb = Image.fromarray(np.stack([x * 2, y * 4, 255 - x * 2], axis=-1).astype(np.uint8))
    alpha = Image.fromarray((y * 4).astype(np.uint8))
    turned, transparent = Image.Exif(), rgb.copy()
    turned[274] = 6
    transparent.putalpha(alpha)
    Image.fromarray(grey).save(folder / "grey16.png")
    transparent.save(folder / "rgba.png")
    rgb.quantize(16).save(folder / "palette.png", transparency=3)
    rgb.save(folder / "turned.jpg", exif=turned)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    return sorted(folder.iterdir())


def test_pictures_are_decoded_as_on_the_command_line(client, make_adapter, tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    pictures = write_pictures(tmp_path / "pictures")
    depth, classes = make_adapter("depth", 1), make_adapter("classification", 1)
    add(client, depth)
    name = add(client, classes)
    command = ["predict", "--json", *map(str, pictures), "--adapter"]
    output = {depth: ["-o", str(tmp_path / "depth")], classes: []}
    for adapter in (depth, classes):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="0"):
            onelora([*command, str(adapter), *output[adapter]])
    expected = [row["classes"] for row in json.loads(capsys.readouterr().out)]
    rows = client.predict([handle_file(picture) for picture in pictures], api_name="/classify")
    for picture, best, row in zip(pictures, expected, rows, strict=True):
        file = client.predict(handle_file(picture), api_name="/depth")["millimetres"]
        stored = np.asarray(Image.open(tmp_path / "depth" / f"{picture.stem}_depth.png"))
        assert np.array_equal(np.asarray(Image.open(file)), stored), picture.name
        (answer,) = [one for one in row["answers"] if one["model"] == name]
        assert [one["name"] for one in answer["classes"]] == [one["name"] for one in best], picture.name
        shares = [[one["probability"] for one in part] for part in (answer["classes"], best)]
        assert np.allclose(*shares, atol=1e-5), picture.name


@pytest.mark.parametrize(("endpoint", "many"), [("/depth", False), ("/classify", True)])
def test_a_broken_picture_is_one_message_that_names_it(client, tmp_path, endpoint, many):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no picture")
    file = handle_file(tmp_path / "broken.png")
    with pytest.raises(AppError) as caught:
        client.predict([file] if many else file, api_name=endpoint)
    assert str(caught.value).startswith("broken.png: cannot be read as an image")


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


def call(address, endpoint, *data):
    """What an endpoint says to a request as it is, without the client's own uploads."""
    body = json.dumps({"data": data}).encode()
    request = urllib.request.Request(
        f"{address}gradio_api/call/{endpoint}", body, {"Content-Type": "application/json"}
    )
    event = json.load(urllib.request.urlopen(request))["event_id"]
    return urllib.request.urlopen(f"{address}gradio_api/call/{endpoint}/{event}").read().decode()


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
    for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
        said = call(address, "depth", {"path": str(inside.with_name("adapter_config.json")), **meta})
        assert "event: error" in said and "cannot be read as an image" not in said
        said = call(address, "classify", [{"path": str(inside.with_name("adapter_config.json")), **meta}])
        assert "event: error" in said and "cannot be read as an image" not in said
    client.close()
    url = serve_app("--max_upload_mb", "1", "--max_training_mb", "1")
    (tmp_path / "large.safetensors").write_bytes(bytes(1_100_000))
    client = Client(url, verbose=False)
    with pytest.raises(Exception, match=r"(?i)maximum|size|413|large"):
        client.predict([handle_file(tmp_path / "large.safetensors")], api_name="/upload")
    client.close()


def test_flags_that_make_no_sense_are_one_line(capsys, monkeypatch):
    from app.__main__ import main

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "mcp" else found(name, *more))
    used = socket.create_server(("127.0.0.1", 0))
    port = str(used.getsockname()[1])
    for flags, message in (
        (["--auth", "me"], "expected USER:PASSWORD"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--bases", "/nowhere"], "--bases /nowhere: no such folder"),
        (["--adapters", "/nowhere"], "--adapters /nowhere: no such folder"),
        (["--port", port], f"--port {port} is in use"),
        (["--port", "70000"], "--port 70000: must be from 1 to 65535"),
        (["--host", "no host"], "--host 'no host' is not the name or address of a machine"),
        (["--host", "a" * 70], "is not the name or address of a machine"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 is not an address of this machine"),
        (["--mcp"], "--mcp needs the package mcp: pip install 'onelora_vision[mcp]'"),
        (["--mcp", "--host", "0.0.0.0"], "all MCP clients share one session"),
        (["--mcp", "--auth", "me:secret"], "MCP clients have no password here"),
        (["--device", "cuda:99"], "--device cuda:99: cannot be used"),
        (["--device", "gpu"], "--device gpu: cannot be used"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(flags)
        lines = capsys.readouterr().err.splitlines()
        assert caught.value.code == 2 and len(lines) == 1 and message in lines[0], flags
    used.close()
