import json
import shutil

import pytest
import torch

from onelora_vision import embedded
from onelora_vision.backbones.dit import DiTBase
from onelora_vision.backbones.dit_network import DiT
from train_scripts import pretrain_embedded
from train_scripts.pretrain_embedded import glyph_batch, initialize_dit, psnr


def test_batches_depend_on_seed_and_step():
    images, labels = glyph_batch(seed=1, step=2, size=4)
    again, same = glyph_batch(seed=1, step=2, size=4)
    assert torch.equal(images, again) and torch.equal(labels, same)
    assert not torch.equal(glyph_batch(seed=1, step=3, size=4)[0], images)


def test_a_fresh_dit_predicts_zero_and_passes_tokens_through():
    model = DiT(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        num_embeds_ada_norm=3,
    )  # fmt: skip
    initialize_dit(model)
    tokens = torch.randn(2, 16, 8)
    conditioning = model.conditioning(torch.tensor([1, 500]), torch.tensor([0, 2]), hidden_dtype=torch.float32)
    assert torch.equal(model.transformer_blocks[1](tokens, timestep=conditioning), tokens)
    output = model(torch.randn(2, 4, 8, 8), torch.tensor([1, 500]), torch.tensor([0, 2])).sample
    assert output.shape == (2, 4, 8, 8) and not output.any()


def test_psnr_of_a_known_error():
    assert psnr(torch.zeros(4), torch.full((4,), 0.1)) == pytest.approx(20, abs=1e-4)


def test_a_dit_without_its_autoencoder_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pretrain_embedded.py", "dit", "--output_dir", str(tmp_path)])
    with pytest.raises(SystemExit) as leaving:
        pretrain_embedded.main()
    assert leaving.value.code == 2
    assert "run the target vae first" in capsys.readouterr().err


def test_a_dit_is_saved_beside_its_autoencoder_as_a_base_that_loads(tmp_path, monkeypatch):
    shutil.copytree(embedded.DIT / "vae", tmp_path / "dit" / "vae")
    glyphs = pretrain_embedded.LatentGlyphs
    monkeypatch.setattr(pretrain_embedded, "LatentGlyphs", lambda vae, seed, count: glyphs(vae, seed, 1000))
    pretrain_embedded.pretrain_dit(tmp_path, 1, 0)
    base = DiTBase.load(tmp_path / "dit")
    assert base.class_names == pretrain_embedded.CLASS_NAMES and base.image_size == 32
    assert not (tmp_path / "dit-training.pt").exists()


def test_a_sit_is_saved_without_its_autoencoder_which_is_the_dits(tmp_path, monkeypatch):
    shutil.copytree(embedded.DIT / "vae", tmp_path / "dit" / "vae")
    glyphs = pretrain_embedded.LatentGlyphs
    monkeypatch.setattr(pretrain_embedded, "LatentGlyphs", lambda vae, seed, count: glyphs(vae, seed, 1000))
    pretrain_embedded.pretrain_sit(tmp_path, 1, 0)
    assert sorted(path.name for path in (tmp_path / "sit").iterdir()) == [
        "model_index.json", "scheduler", "transformer",
    ]  # fmt: skip
    assert json.loads((tmp_path / "sit" / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]
    shipped = DiTBase.load("embedded/sit").schedule
    monkeypatch.setattr(embedded, "SIT", tmp_path / "sit")
    base = DiTBase.load(tmp_path / "sit")
    assert base.class_names == pretrain_embedded.CLASS_NAMES and base.image_size == 32
    assert base.schedule == shipped
    assert all(torch.equal(value, value.bfloat16().float()) for value in base.model.parameters())
