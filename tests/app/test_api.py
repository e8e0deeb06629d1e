"""The app over its API, as scripts use it: the same flows as in the browser."""

import json
import re
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
from onelora_vision.adapters.file import read_adapter
from onelora_vision.cli.main import main as onelora

DRAW = [["2"], 3, False, 1, 2, "dpm++", 2.5, "", True]  # classes, seed, random, images, steps, sampler, …
FROM_BASE = [*DRAW, True]  # what comes last may be left out


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
    _, base, adapted, *_ = client.predict(*wanted, api_name="/draw")
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
    assert 3 in restored and any(isinstance(v, dict) and v.get("value") == "dpm++" for v in restored)
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
    assert client.predict(handle_file(files[1][0]), api_name="/restore")[-1] is True


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
    table = client.predict([handle_file(picture) for picture in pictures], api_name="/classify_all")
    column = table.get("value", table)["headers"].index(name)
    for picture, best, row in zip(pictures, expected, table.get("value", table)["data"], strict=True):
        *_, file = client.predict(handle_file(picture), api_name="/depth")
        file = file["value"] if isinstance(file, dict) else file
        stored = np.asarray(Image.open(tmp_path / "depth" / f"{picture.stem}_depth.png"))
        assert np.array_equal(np.asarray(Image.open(file)), stored), picture.name
        share = f"{100 * best[0]['probability']:.1f} %"
        assert row[column] == f"{best[0]['name']} ({share})"
        answers = client.predict(handle_file(picture), api_name="/classify").split("<section")[-1]
        found = re.findall(r'class="name">(.*?)<.*?class="share">(.*?)<', answers)
        assert found == [(c["name"], f"{100 * c['probability']:.1f} %") for c in best], picture.name


@pytest.mark.parametrize(("endpoint", "many"), [("/depth", False), ("/classify", False), ("/classify_all", True)])
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
    client.close()
    url = serve_app("--max_upload_mb", "1")
    (tmp_path / "large.safetensors").write_bytes(bytes(1_100_000))
    client = Client(url, verbose=False)
    with pytest.raises(Exception, match=r"(?i)maximum|size|413|large"):
        client.predict([handle_file(tmp_path / "large.safetensors")], api_name="/upload")
    client.close()


def test_flags_that_make_no_sense_are_one_line(capsys):
    from app.__main__ import main

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
        (["--device", "cuda:99"], "--device cuda:99: cannot be used"),
        (["--device", "gpu"], "--device gpu: cannot be used"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(flags)
        lines = capsys.readouterr().err.splitlines()
        assert caught.value.code == 2 and len(lines) == 1 and message in lines[0], flags
    used.close()
