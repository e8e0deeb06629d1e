import torch

from onelora_vision.backbones.dit import DiTBase
from onelora_vision.backbones.dit_original import read_original


def test_there_and_back(onelora, dit_folder, tmp_path):
    code, result, _ = onelora("convert", dit_folder, tmp_path / "original.pt", "--json")
    assert code == 0 and result["classes"] == 1000
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {i}" for i in range(1000)))
    code, text, _ = onelora(
        "convert", tmp_path / "original.pt", tmp_path / "pipeline", "--vae", dit_folder / "vae",
        "--num_heads", 2, "--class_names", names,
    )  # fmt: skip
    assert code == 0 and "1000 classes" in text
    first, second = DiTBase.load(dit_folder), DiTBase.load(tmp_path / "pipeline")
    assert second.class_names[7] == "class 7"
    state = second.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in first.model.state_dict().items())
    assert onelora("convert", tmp_path / "pipeline", tmp_path / "again.safetensors")[0] == 0
    again = read_original(tmp_path / "again.safetensors")
    assert all(torch.equal(again[key], value) for key, value in read_original(tmp_path / "original.pt").items())


def test_a_sit_keeps_its_objective_on_the_way_there_and_back(onelora, sit_folder, tmp_path):
    code, text, _ = onelora("convert", sit_folder, tmp_path / "SiT.safetensors")
    assert code == 0 and "predicts velocity, image at t=1" in text
    common = ("--vae", sit_folder / "vae", "--num_heads", 2)
    assert onelora("convert", tmp_path / "SiT.safetensors", tmp_path / "again", *common)[0] == 0
    assert str(DiTBase.load(tmp_path / "again").objective) == "velocity, image at t=1"
    code, _, error = onelora("convert", tmp_path / "SiT.safetensors", tmp_path / "dit", *common, "--model", "dit")
    assert code == 2 and "--model dit, but its header says sit" in error and not (tmp_path / "dit").exists()
    onelora("convert", sit_folder, tmp_path / "SiT.pt")  # which cannot say whose it is
    code, _, error = onelora("convert", tmp_path / "SiT.pt", tmp_path / "unknown", *common)
    assert code == 2 and "--model sit, repa or dit" in error and not (tmp_path / "unknown").exists()
    code, result, _ = onelora("convert", tmp_path / "SiT.pt", tmp_path / "repa", *common, "--model", "repa", "--json")
    assert code == 0 and result["objective"] == "velocity, image at t=0"
    code, _, error = onelora("convert", sit_folder, tmp_path / "x.pt", "--model", "sit")
    assert code == 2 and "is a pipeline, whose scheduler determines the model" in error


def test_bad_input_is_one_line(onelora, dit_folder, tmp_path):
    onelora("convert", dit_folder, tmp_path / "original.pt")
    for arguments, message in {
        (tmp_path / "gone.pt", tmp_path / "out"): "gone.pt",
        (tmp_path / "original.pt", tmp_path / "out"): "--vae is needed",
        (tmp_path / "original.pt", tmp_path / "out", "--vae", tmp_path, "--num_heads", 2): "no autoencoder",
        (dit_folder, tmp_path / "out.bin"): "NAME.pt",
    }.items():
        code, _, error = onelora("convert", *arguments)
        lines = [line for line in error.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "out").exists()
