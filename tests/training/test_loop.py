import math
import signal
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import tiny_run
import torch
from processes import run_together
from tiny_run import NoisyColors, TinyConfig, TinyTask, run, tiny_model

from onelora_vision.data.stream import TrainingBatchSampler
from onelora_vision.errors import InputError, Stopped, TrainingError
from onelora_vision.methods.names import find_method
from onelora_vision.training import setup, step
from onelora_vision.training.loop import train
from onelora_vision.training.setup import start_run

EVERYTHING = {
    "dropout": 0.1,
    "use_ema": True,
    "gradient_accumulation_steps": 2,
    "train_batch_size": 3,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 2,
    "validation_steps": 2,
    "validation_loss_steps": 2,
    "metric_for_best_model": "weight",
    "checkpointing_steps": 3,
}


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def job(folder, **settings):
    return run(TinyConfig(output_dir=str(folder), **settings))


def checkpoint_state(folder):
    state = torch.load(folder / "training_state.pt", weights_only=True)
    state["progress"].update(seconds=0, data_seconds=0)
    return [state, *(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))]


def assert_same(first, second):
    """Bitwise, through dictionaries and lists."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for a, b in zip(first, second):
            assert_same(a, b)
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    else:
        assert first == second


def assert_same_run(folder, unbroken, resumed):
    assert_same(unbroken[0].history, resumed[0].history)
    assert_same(unbroken[0].evaluations, resumed[0].evaluations)
    assert_same(unbroken[0].validation_losses, resumed[0].validation_losses)
    assert (unbroken[0].best_step, unbroken[0].best_metric) == (resumed[0].best_step, resumed[0].best_metric)
    assert_same(unbroken[1:], resumed[1:])
    assert_same(*(checkpoint_state(folder / name / "checkpoint-6") for name in ("unbroken", "resumed")))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_by_a_signal_and_resumed_ends_in_the_same_bits(tmp_path, workers):
    unbroken = job(tmp_path / "unbroken", **EVERYTHING)
    stopped = {**EVERYTHING, "dataloader_num_workers": workers}
    with pytest.raises(Stopped) as leaving:
        job(tmp_path / "resumed", **stopped, kill_in_step=3)
    assert leaving.value.signal == signal.SIGTERM
    checkpoint = tmp_path / "resumed" / "checkpoint-4"  # the step was finished
    assert leaving.value.message == (
        f"stopped by SIGTERM while training; the last good checkpoint is {checkpoint}: resume with the same command "
        "and --resume_from_checkpoint latest"
    )
    resumed = job(tmp_path / "resumed", **stopped, resume_from_checkpoint="latest")
    assert_same_run(tmp_path, unbroken, resumed)


def test_rates_by_sums_resume_in_the_same_bits(tmp_path):
    settings = {**EVERYTHING, "method": "onelora", "sum_scale": "rms", "learning_rate": 0.1}
    unbroken = job(tmp_path / "unbroken", **settings)
    with pytest.raises(Stopped):
        job(tmp_path / "resumed", **settings, kill_in_step=3)
    resumed = job(tmp_path / "resumed", **settings, resume_from_checkpoint="latest")
    assert_same_run(tmp_path, unbroken, resumed)
    plain = job(tmp_path / "plain", **{**settings, "sum_scale": "none"})
    name = "base_model.model.blocks.0.attn.qkv.onelora_b.default"
    assert not torch.allclose(plain[1][name], unbroken[1][name])
    with pytest.raises(InputError, match="--sum_scale rms is for methods with sum"):
        job(tmp_path / "lora", sum_scale="rms")


def test_a_killed_loader_process_ends_the_run_in_one_line_with_a_checkpoint(tmp_path):
    settings = {"checkpointing_steps": 0, "train_batch_size": 1, "num_samples": 20}
    unbroken, handler = job(tmp_path / "unbroken", **settings), signal.getsignal(signal.SIGCHLD)
    message = r"DataLoader worker .*because memory ran out; .*the last good checkpoint is .*: resume with .* latest"
    with pytest.raises(TrainingError, match=message) as error:
        job(tmp_path / "resumed", **settings, dataloader_num_workers=1, kill_worker_at=last_sample(settings))
    assert "\n" not in str(error.value)
    # PyTorch's own handler would raise at whatever line runs when the process ends, also after this test.
    assert signal.getsignal(signal.SIGCHLD) == handler
    resumed = job(tmp_path / "resumed", **settings, resume_from_checkpoint="latest")
    assert_same_run(tmp_path, unbroken, resumed)


def test_an_unforeseen_error_leaves_a_checkpoint_of_the_last_whole_step(tmp_path, monkeypatch):
    unbroken = job(tmp_path / "unbroken", **EVERYTHING)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="a bug") as error:
        patched.setattr(TinyTask, "forward", fail_in_call(9, TinyTask.forward))
        job(tmp_path / "resumed", **EVERYTHING, max_train_steps=6)
    assert error.value.__notes__[0].startswith(f"while training; the last good checkpoint is {tmp_path}/resumed")
    assert (tmp_path / "resumed" / "checkpoint-4").is_dir()
    resumed = job(tmp_path / "resumed", **EVERYTHING, resume_from_checkpoint="latest")
    assert_same_run(tmp_path, unbroken, resumed)


def fail_in_call(number, function):
    calls = []

    def called(*args):
        calls.append(args)
        if len(calls) == number:
            raise RuntimeError("a bug")
        return function(*args)

    return called


def last_sample(settings):
    """The sample of a run's last step, on one process."""
    sampler = TrainingBatchSampler(settings["num_samples"], settings["train_batch_size"], 6, seed=0)
    return sampler.batch(5)[0].index


def test_an_evaluation_cut_short_is_done_again(tmp_path):
    unbroken = job(tmp_path / "unbroken", **EVERYTHING)
    with pytest.raises(Stopped):
        job(tmp_path / "resumed", **EVERYTHING, kill_in_evaluation=1)
    assert (tmp_path / "resumed" / "checkpoint-4").is_dir()
    resumed = job(tmp_path / "resumed", **EVERYTHING, resume_from_checkpoint="latest")
    assert [step for step, _ in resumed[0].evaluations] == [2, 4, 6]
    assert_same_run(tmp_path, unbroken, resumed)


def test_drop_out_and_data_depend_on_the_seed(tmp_path):
    losses = {seed: job(tmp_path / str(seed), seed=seed, dropout=0.1)[0].history["loss"] for seed in (0, 1)}
    assert losses[0] != losses[1]
    assert job(tmp_path / "again", seed=1, dropout=0.1)[0].history["loss"] == losses[1]


def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path):
    unbroken = job(tmp_path / "unbroken", max_train_steps=4)
    job(tmp_path / "longer", max_train_steps=2, checkpointing_steps=2)
    longer = job(tmp_path / "longer", max_train_steps=4, resume_from_checkpoint=str(tmp_path / "longer/checkpoint-2"))
    assert_same(unbroken[1], longer[1])


def test_accumulated_batches_train_like_one_large_batch(tmp_path):
    large = job(tmp_path / "large", train_batch_size=4)
    small = job(tmp_path / "small", train_batch_size=2, gradient_accumulation_steps=2)
    torch.testing.assert_close(small[0].history["loss"], large[0].history["loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(small[1], large[1], rtol=1e-4, atol=1e-6)


def test_two_processes_train_like_one_and_stop_together(tmp_path):
    settings = {"checkpointing_steps": 6, "validation_steps": 3, "use_ema": True, "max_train_steps": 6}
    settings |= {"method": "onelora", "sum_scale": "rms", "learning_rate": 0.05, "validation_loss_steps": 2}
    alone = job(tmp_path / "alone", train_batch_size=4, **settings)
    flags = [f"--{name}={value}" for name, value in {**settings, "kill_in_step": 3, "kill_rank": 1}.items()]
    command = [tiny_run.__file__, f"--output_dir={tmp_path / 'two'}", "--train_batch_size=2", *flags]
    assert [code for code, _ in run_together(command)] == [143, 143]
    # Half of its steps on two processes, the other half on one, as long as the samples per step are the same.
    both = job(tmp_path / "two", train_batch_size=4, **settings, resume_from_checkpoint="latest")
    torch.testing.assert_close(both[0].history["loss"], alone[0].history["loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both[0].history["grad_norm"], alone[0].history["grad_norm"], rtol=1e-4, atol=1e-6)
    curves = [torch.tensor(run[0].validation_losses) for run in (both, alone)]
    torch.testing.assert_close(*curves, rtol=1e-5, atol=1e-6)
    assert curves[0][:, 0].tolist() == [0, 2, 4, 6]
    assert [figures["accuracy"] for _, figures in both[0].evaluations] == [
        figures["accuracy"] for _, figures in alone[0].evaluations
    ]
    torch.testing.assert_close(both[1], alone[1], rtol=1e-4, atol=1e-6)


def test_the_schedule_steps_once_per_optimizer_step(tmp_path):
    settings = {"lr_scheduler": "linear", "lr_warmup_steps": 2, "learning_rate": 1.0, "head_learning_rate": 0.1}
    history = job(tmp_path, gradient_accumulation_steps=3, **settings)[0].history
    assert history["lr_vectors"] == [0, 0.5, 1, 0.75, 0.5, 0.25]
    assert history["lr_head"] == pytest.approx([0, 0.05, 0.1, 0.075, 0.05, 0.025])


@pytest.mark.parametrize("steps", [20, 19])
def test_waiting_for_data_is_measured_and_told(tmp_path, monkeypatch, capsys, steps):
    clock = [0.0]

    def takes(seconds, function):
        def later(*args):
            clock[0] += seconds
            return function(*args)

        return later

    monkeypatch.setattr(step, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(NoisyColors, "__getitem__", takes(1.0, NoisyColors.__getitem__))
    monkeypatch.setattr(TinyTask, "forward", takes(12.0, TinyTask.forward))
    summary = job(tmp_path, max_train_steps=steps, train_batch_size=4)[0]
    assert (summary.data_seconds_per_step, summary.seconds_per_step) == (4.0, 16.0)
    told = "training spent 25% of its time waiting for data: more processes can read ahead (--dataloader_num_workers, now 0)"
    assert (told in capsys.readouterr().out) == (steps == 20)


def test_gradients_are_clipped_and_the_norm_before_is_logged(tmp_path, monkeypatch):
    norms, step = [], torch.optim.AdamW.step

    def spy(optimizer, *args):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(torch.cat([gradient.flatten() for gradient in gradients]).norm().item())
        return step(optimizer, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    clipped = job(tmp_path / "clipped", max_grad_norm=1e-3, max_train_steps=2)[0].history["grad_norm"]
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-2)
    assert min(clipped) > 0.01
    norms.clear()
    free = job(tmp_path / "free", max_grad_norm=0, max_train_steps=2)[0].history["grad_norm"]
    assert norms == pytest.approx(free, rel=1e-5)


def test_a_nan_stops_with_all_that_helps_to_find_it(tmp_path):
    with pytest.raises(TrainingError) as error:
        job(tmp_path, nan_sample=7, checkpointing_steps=1, train_batch_size=2, seed=2)
    message = str(error.value)
    assert "images/7.png" in message and message.count("images/") == 2
    assert "loss nan" in message and "learning rate 0.001" in message and message.endswith(find_method("lora").hint)
    step = int(message.split("step ")[1].split(":")[0])
    assert step > 0 and str(tmp_path / f"checkpoint-{step}") in message


def test_a_nan_can_be_skipped(tmp_path):
    summary, trained, _ = job(tmp_path, nan_sample=7, on_nan="skip", train_batch_size=2, max_train_steps=10)
    assert summary.skipped_steps == sum(map(math.isnan, summary.history["loss"])) == 2  # 2 epochs
    assert all(tensor.isfinite().all() for tensor in trained.values())


def test_skipping_without_end_stops(tmp_path):
    with pytest.raises(TrainingError, match=r"images/0\.png"):
        job(tmp_path, num_samples=1, nan_sample=0, on_nan="skip", max_train_steps=100)


@pytest.mark.parametrize(("greater", "best"), [(True, 6), (False, 2)])
def test_the_best_adapter_is_kept(tmp_path, greater, best):
    settings = {"validation_steps": 2, "metric_for_best_model": "weight", "greater_is_better": greater}
    summary, _, _ = job(tmp_path, **settings, learning_rate=0.1)
    figures = dict(summary.evaluations)
    assert summary.best_step == best == (max if greater else min)(figures, key=lambda step: figures[step]["weight"])
    assert summary.best_metric == figures[best]["weight"]
    saved = peft.load_peft_weights(str(tmp_path / "best"), device="cpu")
    weight = sum(tensor.double().abs().sum().item() for name, tensor in saved.items() if "lora" in name)
    assert weight == pytest.approx(summary.best_metric)


def test_evaluation_and_result_use_the_average(tmp_path):
    plain = job(tmp_path / "plain", learning_rate=0.1)
    averaged = job(tmp_path / "averaged", learning_rate=0.1, use_ema=True, validation_steps=6)
    assert averaged[0].history == plain[0].history
    assert averaged[0].evaluations[0][1] == averaged[2]
    assert averaged[2]["weight"] < plain[2]["weight"]


def test_bf16_trains_fp32_vectors(tmp_path):
    _, trained, _ = job(tmp_path, mixed_precision="bf16", max_train_steps=2)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}


def test_figures_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    summary, _, _ = job(tmp_path, report_to="auto", max_train_steps=2, validation_steps=2)
    events = EventAccumulator(str(tmp_path / "logs" / "onelora_vision"))
    events.Reload()
    assert {"train/loss", "train/grad_norm", "train/lr_head", "evaluation/accuracy"} <= set(events.Tags()["scalars"])
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx(summary.history["loss"])


def test_an_adapter_that_gets_no_gradient_is_named(tmp_path):
    class Detached(TinyTask):
        def forward(self, batch):
            base = self.model.get_base_model()
            base.blocks[0].mlp.fc1.forward = lambda x: torch.nn.functional.linear(x, fc1.weight)
            fc1 = base.blocks[0].mlp.fc1.base_layer
            return super().forward(batch)

    config = TinyConfig(output_dir=str(tmp_path))
    with start_run(config) as run, pytest.raises(InputError, match=r"blocks\.0\.mlp\.fc1"):
        train(run, Detached(tiny_model(config), config), NoisyColors(config))


def test_the_settings_of_accelerate_that_do_not_work_are_one_line(tmp_path, monkeypatch):
    def refuse(**settings):
        raise ValueError("fp8 mixed precision\nrequires another GPU")

    monkeypatch.setattr(setup, "Accelerator", refuse)
    message = "accelerate refuses these settings: fp8 mixed precision requires another GPU"
    with pytest.raises(InputError, match=message), start_run(TinyConfig(output_dir=str(tmp_path))):
        pass


def test_a_dry_run_touches_no_folder(tmp_path):
    with start_run(TinyConfig(output_dir=str(tmp_path / "out"), dry_run=True)):
        pass
    assert not Path(tmp_path / "out").exists()
