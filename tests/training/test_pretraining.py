import pytest
import torch
import torch.nn.functional as F
from torch import nn

from onelora_vision.training.pretraining import fit


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


def test_a_run_resumes_from_its_checkpoint(tmp_path, monkeypatch):
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
