"""The planner's bytes are those that a real step keeps and takes, on tiny models of the real hosts."""

import functools
import json
import weakref

import pytest
import torch
from tiny_hosts import HOSTS, tiny_base
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from onelora_vision.backbones.dit import DiTBase, dit_adaptation
from onelora_vision.budget import memory as planner
from onelora_vision.cli.main import main
from onelora_vision.cli.plan import bytes_of
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method, trainable_parameters


class Allocations(TorchDispatchMode):
    """Live bytes of real tensors during a block."""

    def __init__(self, known):
        super().__init__()
        self.alive, self.peak = {}, 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.count, result)
        return result

    def count(self, tensor):
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place not in self.known and place not in self.alive:
            self.alive[place] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, place, None)
            self.peak = max(self.peak, sum(self.alive.values()))


def real_step(model, inputs, batch, precision):
    weights, autocast = planner.PRECISIONS[precision]
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(weights)
    model.train()
    arguments = inputs(batch)
    known = [*model.parameters(), *model.buffers()]
    with Allocations(known) as allocations:
        arguments = {name: tensor.clone() for name, tensor in arguments.items()}
        loss = planner.training_loss(model, arguments, autocast)
        saved = sum(allocations.alive.values())
        loss.backward()
    return saved, allocations.peak


def hosts_methods_and_precisions():
    """All; every method is planned in fp32 and one in bf16, on every host, and the rest is slow."""
    for host in HOSTS:
        for method in ("onelora", "lora", "difffit", "full"):
            yield pytest.param(host, method, "fp32", id=f"{host}-{method}-fp32")
            marks = () if method == "onelora" else pytest.mark.slow
            yield pytest.param(host, method, "bf16", id=f"{host}-{method}-bf16", marks=marks)


@pytest.mark.parametrize(("host", "method", "precision"), hosts_methods_and_precisions())
def test_planned_bytes_are_those_of_a_real_step(host, method, precision):
    base = tiny_base(host)
    inputs, model = base.example, apply_method(base.model, method, base.adaptation())
    planned = planner.fake_step(model, inputs, 3, precision)
    assert not any(type(p).__name__ == "FakeTensor" for p in model.parameters())
    saved, peak = real_step(model, inputs, 3, precision)
    assert planned.saved == pytest.approx(saved, rel=0.02)
    assert planned.activations + planned.gradients == pytest.approx(peak, rel=0.05)
    assert planned.optimizer == 8 * trainable_parameters(model)


@pytest.mark.parametrize("compression", ["random", "singular", "subspace"])
def test_directions_of_a_network_without_weights_are_planned(compression):
    def step(base):
        model = apply_method(base.model, "onelora", base.adaptation(), compression=compression)
        return planner.fake_step(model, base.example, 3)

    real = DiTBase.from_config(DIT, num_classes=5)
    with torch.device("meta"):
        empty = DiTBase.from_config(DIT, num_classes=5)
    real, without = step(real), step(empty)
    vectors = real.weights - without.weights  # those of the network without weights are made during the step
    assert vectors > 0 and without.saved == pytest.approx(real.saved, abs=vectors)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_is_planned_as_it_is(precision, kind):
    base = tiny_base("diffusers")
    full = sum(p.nbytes for p in base.model.parameters())
    inputs, model = base.example, apply_method(base.model, "onelora", base.adaptation(), quantize=kind)
    planned = planner.fake_step(model, inputs, 3, precision)
    saved, peak = real_step(model, inputs, 3, precision)
    assert planned.weights < 0.7 * full
    assert planned.saved == pytest.approx(saved, rel=0.02)
    assert planned.activations + planned.gradients == pytest.approx(peak, rel=0.05)


def test_the_command_plans_8_bits(dit_folder, capsys):
    rows = []
    for kind in ("none", "int8"):
        with pytest.raises(SystemExit) as ended:
            main(["plan", "--backbone", str(dit_folder), "--batch", "1", "--quantize", kind, "--json"])
        assert ended.value.code == 0
        rows.append(json.loads(capsys.readouterr().out)[0]["plain"])
    # 39,936 of 115,936 values: the label table has 1,001 rows
    assert rows[1]["weights"] < 0.8 * rows[0]["weights"] and rows[1]["peak"] < rows[0]["peak"]
    with pytest.raises(InputError, match="--quantize int3: choose none, int8, nf4"):
        planner.plan(str(dit_folder), quantize="int3")


def test_weights_are_those_of_the_precision(dit):
    model = apply_method(dit, "onelora", dit_adaptation(dit))
    inputs = DiTBase(model=dit).example
    fixed = [p for p in model.parameters() if not p.requires_grad] + [
        b for b in model.buffers() if b.is_floating_point()
    ]
    frozen = sum(tensor.numel() for tensor in fixed)
    full, half = (planner.fake_step(model, inputs, 1, precision) for precision in ("fp32", "pure-bf16"))
    assert full.weights - half.weights == 2 * frozen
    assert half.activations < full.activations


DIT = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 4, "sample_size": 8, "in_channels": 4,
       "out_channels": 8}  # fmt: skip


def test_checkpointing_takes_less_and_the_largest_batch_is_the_largest(monkeypatch):
    def describe(name, num_classes, fuse_qkv):
        with torch.device("meta"):
            return DiTBase.from_config(DIT, num_classes=5)

    monkeypatch.setattr(planner, "describe", describe)
    memory = 4_000_000
    found = planner.plan("tiny", batch=4, precision="fp32", memory=memory)
    plain, checkpointed = found["plain"], found["gradient_checkpointing"]
    assert plain["peak"] == sum(plain[part] for part in ("weights", "activations", "gradients", "optimizer"))
    assert checkpointed["peak"] < 0.8 * plain["peak"] and checkpointed["largest_batch"] > plain["largest_batch"] > 1
    base = describe("tiny", None, False)
    model, inputs = apply_method(base.model, "onelora", base.adaptation()), base.example
    largest, next_one = (planner.fake_step(model, inputs, plain["largest_batch"] + more).peak for more in (0, 1))
    assert largest <= memory < next_one
    several = planner.plan("tiny", batch=4, precision="fp32", memory=[memory, 2 * memory])["plain"]["largest_batch"]
    assert several[0] == plain["largest_batch"] and several[1] > several[0]
    with monkeypatch.context() as patch:
        patch.setattr(planner, "fake_step", lambda *args: planner.StepMemory(2000, 0, 0, 0, 0))
        assert planner.plan("tiny", batch=4, memory=1000)["plain"]["largest_batch"] == 0


@pytest.mark.parametrize("batch", [1, 4, 32])
@pytest.mark.parametrize("memory", [999, 1000, 1400, 1499, 1500, 5000, 123_456])
def test_the_largest_batch_is_found_where_the_optimizer_makes_the_peak_of_small_ones(batch, memory):
    def measure(size):
        return planner.StepMemory(max(1000, 100 + 7 * size), 0, 0, 0, 0)

    expected = 0 if memory < 1000 else max((memory - 100) // 7, (1000 - 100) // 7)
    for kept in (0, 100, 10**6):
        assert planner._largest_batch(measure, memory, batch, kept) == expected


@pytest.mark.parametrize("memory", [500, 10_000, 123_456, 10**6])
def test_few_steps_are_measured(memory):
    """Where one line makes the peak of small batches and another that of large ones."""
    measured = []

    def measure(size):
        measured.append(size)
        return planner.StepMemory(300, max(50 + 7 * size, 20 * size - 4000), 0, 8, 0)

    largest = planner._largest_batch(functools.cache(measure), memory, 32)
    assert measure(largest).peak <= memory < measure(largest + 1).peak or largest == 0
    assert len(measured) <= 8


def test_sizes_are_read_with_their_units():
    assert (bytes_of("24GB"), bytes_of("1.5 GiB"), bytes_of("512mib")) == (24 * 10**9, 3 * 2**29, 2**29)
    for text in ("24", "GB", "0GB", "-1GB", "24 gigs"):
        with pytest.raises(InputError, match="such as 24GB"):
            bytes_of(text)


def test_command_prints_a_table_and_json(capsys, dit_folder):
    command = ["plan", "--backbone", str(dit_folder), "--batch", "2", "--num_classes", "3", "--method", "onelora"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--json"])
    assert ended.value.code == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["backbone"] == str(dit_folder) and row["plain"]["largest_batch"] is None
    assert row["plain"]["peak"] >= row["gradient_checkpointing"]["peak"] > row["plain"]["weights"]
    with pytest.raises(SystemExit):
        main([*command, "--memory", "20MB,40MB"])
    head, plain, _ = capsys.readouterr().out.splitlines()[1:]
    assert head.endswith("fits 20MB     fits 40MB") and int(plain.split()[-1]) > int(plain.split()[-2]) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backbone", "dit-s-8", "--precision", "int4"], "--precision int4"),
        (["--backbone", "dit-s-8", "--batch", "0"], "--batch is 0"),
        (["--backbone", "dit-s-8", "--memory", "big"], "--memory is 'big'"),
        (["--backbone", "dit-s-8", "--method", "lorra"], "did you mean 'lora'"),
        (["--backbone", "dit-s-8", "--max_length", "9"], "--max_length: DiT takes no text"),
        (["--backbone", "llama-2-7b", "--max_length", "0"], "--max_length is 0"),
    ],
)
def test_bad_input_of_the_command(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", *arguments])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and len(error.splitlines()) == 1 and message in error


def test_every_step_is_announced(dit_folder, monkeypatch):
    steps, taken = [], []

    def step_of(model, inputs, batch, precision):
        taken.append(batch)
        return planner.StepMemory(2000, 100 * batch, 0, 0, 0)

    monkeypatch.setattr(planner, "fake_step", step_of)
    planner.plan(str(dit_folder), memory=10**4, batch=2, watch=steps.append)
    assert [int(step.split()[-1]) for step in steps] == taken and len(taken) >= 4
    assert steps[0] == "onelora, plain, batch 2" and "onelora, gradient checkpointing, batch 2" in steps
