"""A compiled run trains like another, checkpointed or not, and leaves the same files."""

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from packaging.version import Version
from test_loop import job
from tiny_hosts import HOSTS, example, fresh
from torch._dynamo.testing import CompileCounterWithBackend

from onelora_vision.backbones.base import enable_gradient_checkpointing
from onelora_vision.budget.memory import training_loss
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method
from onelora_vision.training import loop
from onelora_vision.training.compilation import compile_blocks


@pytest.fixture(autouse=True)
def fresh_state():
    torch._dynamo.reset()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(host, backend=None, checkpointing=False, steps=3):
    model, adaptation = fresh(host)
    if checkpointing:
        enable_gradient_checkpointing(model)
    model = apply_method(model, "onelora", adaptation).train()
    counter = None
    if backend is not None:
        counter = CompileCounterWithBackend(backend)
        compile_blocks(model, counter)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = training_loss(model, example(host), None)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, list(model.state_dict()), counter


def hosts_and_checkpointing():
    """Each host checkpointed, which compiles the same blocks as without; without: one, and the others slow."""
    for host in HOSTS:
        yield pytest.param(host, True, id=f"{host}-checkpointed")
        yield pytest.param(host, False, id=f"{host}-plain", marks=() if host == "timm" else pytest.mark.slow)


@pytest.mark.parametrize(("host", "checkpointing"), hosts_and_checkpointing())
def test_compiled_blocks_train_alike_and_share_one_compilation(host, checkpointing):
    expected, names, _ = train(host)
    losses, compiled_names, counter = train(host, "aot_eager", checkpointing)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert compiled_names == names and not any("_orig_mod" in name for name in names)
    if Version(torch.__version__) >= Version("2.15"):  # with 2.11 and its time's hosts some blocks are compiled apart
        assert counter.frame_count <= 2  # the first block, whose input asks for no gradient, and all others


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_inductor_trains_alike(host):
    assert train(host, "inductor", True)[0] == pytest.approx(train(host)[0], rel=1e-4)


def test_the_scripts_flag_compiles_the_model_of_the_loop(monkeypatch, tmp_path):
    compiled = []

    def compile_eagerly(model):
        compiled.extend(compile_blocks(model, "aot_eager"))

    monkeypatch.setattr(loop, "compile_blocks", compile_eagerly)
    plain, tensors, _ = job(tmp_path / "plain", max_train_steps=3)
    assert not compiled
    summary, found, _ = job(tmp_path / "compiled", max_train_steps=3, torch_compile=True)
    assert len(compiled) == 2
    assert summary.history["loss"] == pytest.approx(plain.history["loss"], rel=1e-5)
    assert found.keys() == tensors.keys()


def test_a_model_without_blocks_is_refused():
    with pytest.raises(InputError, match="no list of similar blocks"):
        compile_blocks(torch.nn.Linear(2, 2))
