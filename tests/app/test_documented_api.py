"""The examples of docs/app.md, run as they stand but for the address."""

import re
import zipfile
from pathlib import Path

from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "app.md"


def test_the_documented_examples_run(address, make_adapter, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("app.trainings.run.flags_of", lambda *settings: ["dit", "--learning_rat", "1"])
    monkeypatch.chdir(tmp_path)
    Path("mine.safetensors").write_bytes(make_adapter("generation", 3).read_bytes())
    Image.new("RGB", (40, 30), "gray").save("picture.png")
    with zipfile.ZipFile("my-images.zip", "w") as archive:
        for name in ("cat/1.png", "dog/1.png"):
            archive.writestr(name, Path("picture.png").read_bytes())
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    code = "\n".join(blocks).replace("http://127.0.0.1:7860", address)
    endpoints = set(re.findall(r'api_name="(/\w+)"', code))
    assert endpoints >= {"/draw", "/grid", "/depth", "/classify", "/adapters", "/blend", "/train"}
    names: dict = {}
    exec(compile(code, str(PAGE), "exec"), names)
    names["client"].close()
    said = capsys.readouterr().out
    assert "0.7 × mine" in said and "Drawn: 4 images" in said and "my-images" not in said
    assert names["training"]["title"] == "my-images-dit"
