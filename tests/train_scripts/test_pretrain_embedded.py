import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onelora_vision.backbones.dit import DiT
from train_scripts import pretrain_embedded
from train_scripts.pretrain_embedded import fit, glyph_batch, initialize_dit, psnr


def line_fit(steps: int, **options):
    """Fit y = 2x + 1 with a linear model; returns what `fit` does."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)

    def loss_at(step: int) -> torch.Tensor:
        x = torch.rand(64, 1, generator=torch.Generator().manual_seed(step))
        return F.mse_loss(model(x).float(), 2 * x + 1)

    return fit(model, loss_at, steps, learning_rate=0.05, **options)


def test_fit_reaches_the_line_and_its_average_follows():
    model = line_fit(400, ema_decay=0.9)  # products are rounded to bfloat16
    assert model.weight.item() == pytest.approx(2, abs=0.1)
    assert model.bias.item() == pytest.approx(1, abs=0.1)


def test_a_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    whole = line_fit(1200, ema_decay=0.99)
    file = tmp_path / "training.pt"

    class Interrupted(Exception):
        pass

    real = nn.utils.clip_grad_norm_
    calls = []

    def cut(*arguments):
        calls.append(1)
        if len(calls) > 1100:
            raise Interrupted
        return real(*arguments)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", cut)
    with pytest.raises(Interrupted):
        line_fit(1200, ema_decay=0.99, checkpoint=file)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", real)
    resumed = line_fit(1200, ema_decay=0.99, checkpoint=file)
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)


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
