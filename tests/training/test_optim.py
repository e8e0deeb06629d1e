import pytest
import torch
from tiny_run import TinyConfig, tiny_model
from torch import nn

from onelora_vision.errors import InputError
from onelora_vision.training.optim import (
    FactoredAdamW,
    build_optimizer,
    build_scheduler,
    to_fp32,
    total_steps,
    trained_parameters,
)


def rates(num_steps, **settings):
    """The learning rate that each step is taken with."""
    config = TinyConfig(learning_rate=1.0, **settings)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    scheduler = build_scheduler(optimizer, config, num_steps)
    seen = []
    for _ in range(num_steps):
        seen.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return seen


def test_schedules_are_pinned():
    assert rates(4) == [1, 1, 1, 1]
    assert rates(6, lr_scheduler="constant_with_warmup", lr_warmup_steps=4) == [0, 0.25, 0.5, 0.75, 1, 1]
    assert rates(6, lr_scheduler="linear", lr_warmup_steps=2) == [0, 0.5, 1, 0.75, 0.5, 0.25]
    assert rates(5, lr_scheduler="cosine", lr_warmup_steps=1) == pytest.approx(
        [0, 1, 0.853553, 0.5, 0.146447], abs=1e-6
    )
    assert rates(4, lr_scheduler="polynomial", lr_power=2) == pytest.approx([1, 0.5625, 0.25, 0.0625], abs=1e-6)


def test_a_warm_up_longer_than_the_run_is_cut_to_it():
    assert rates(4, lr_scheduler="linear", lr_warmup_steps=9) == [0, 0.25, 0.5, 0.75]


def test_modules_trained_whole_have_their_own_rate():
    config = TinyConfig(learning_rate=0.1, head_learning_rate=0.01)
    model = tiny_model(config)
    groups = {group["name"]: group for group in build_optimizer(model, config).param_groups}
    named = {id(p): name for name, p in model.named_parameters()}
    assert [named[id(p)].split(".")[-1] for p in groups["head"]["params"]] == ["weight", "bias"]
    assert all("lora_" in named[id(p)] for p in groups["vectors"]["params"])
    assert (groups["vectors"]["lr"], groups["head"]["lr"]) == (0.1, 0.01)
    assert {group["weight_decay"] for group in groups.values()} == {0.0}
    assert sum(len(group["params"]) for group in groups.values()) == len(trained_parameters(model))


def test_scale_lr_multiplies_by_samples_per_step():
    config = TinyConfig(learning_rate=0.1, scale_lr=True, train_batch_size=4, gradient_accumulation_steps=3)
    groups = build_optimizer(tiny_model(config), config, num_processes=2).param_groups
    assert [group["lr"] for group in groups] == pytest.approx([2.4, 2.4])


def test_factors_are_rates_of_single_parameters():
    torch.manual_seed(0)
    starts, factors = torch.randn(3, 5), [1.0, 0.01, 300.0]
    ours = [nn.Parameter(start.clone()) for start in starts]
    theirs = [nn.Parameter(start.clone()) for start in starts]
    settings = {"lr": 0.1, "weight_decay": 0.02}
    optimizer = FactoredAdamW([{"params": ours, "factors": factors}], **settings)
    reference = torch.optim.AdamW([{"params": [p], "lr": 0.1 * f} for p, f in zip(theirs, factors)], **settings)
    for step in range(4):
        for a, b in zip(ours, theirs):
            a.grad = b.grad = torch.randn(5)
        optimizer.step(), reference.step()
        if step == 1:  # the state has the factors
            state = optimizer.state_dict()
            optimizer = FactoredAdamW([{"params": ours, "factors": [0.0] * 3}], lr=9)
            optimizer.load_state_dict(state)
    torch.testing.assert_close(torch.stack(ours).data, torch.stack(theirs).data, rtol=1e-4, atol=1e-4)


def test_factors_go_to_vectors_by_name():
    config = TinyConfig(method="onelora", learning_rate=0.1)
    model = tiny_model(config)
    name = next(name for name in trained_parameters(model) if "onelora_b" in name)
    groups = {g["name"]: g for g in build_optimizer(model, config, factors={name: 7.0}).param_groups}
    chosen = dict(zip(groups["vectors"]["factors"], groups["vectors"]["params"]))
    assert sorted(chosen) == [1.0, 7.0] and chosen[7.0] is trained_parameters(model)[name]
    assert "factors" not in groups["head"]
    assert type(build_optimizer(model, config)) is torch.optim.AdamW


def test_nothing_to_train_is_refused():
    with pytest.raises(InputError, match="trains nothing"):
        build_optimizer(nn.Linear(1, 1).requires_grad_(False), TinyConfig())


def test_only_trained_parameters_become_fp32():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).to(torch.bfloat16)
    model[0].requires_grad_(False)
    to_fp32(model)
    assert [model[i].weight.dtype for i in (0, 1)] == [torch.bfloat16, torch.float32]


def test_epochs_become_steps_rounded_up():
    config = TinyConfig(max_train_steps=None, num_train_epochs=3, train_batch_size=4, gradient_accumulation_steps=2)
    assert total_steps(config, num_samples=10, num_processes=1) == 4  # 30 samples in steps of 8
    assert total_steps(config, num_samples=10, num_processes=2) == 2
    assert total_steps(TinyConfig(max_train_steps=7, num_train_epochs=3), 10) == 7
