"""A tiny real training job, for tests to call in this process or to run as a script in another."""

import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path

import peft
import timm
import torch

from onelora_vision import OneLoraConfig, seeding
from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.data.stream import SampleRef, evaluation_loader
from onelora_vision.runtime.command import exits_cleanly
from onelora_vision.tasks.base import Task
from onelora_vision.training.command_line import parse_config
from onelora_vision.training.config import TrainingConfig, option
from onelora_vision.training.evaluation import evaluate
from onelora_vision.training.loop import train
from onelora_vision.training.setup import start_run
from onelora_vision.training.summary import TrainingSummary
from onelora_vision.training.validation_loss import WatchedSamples


@dataclass(kw_only=True)
class TinyConfig(TrainingConfig):
    train_batch_size: int = option(4, "samples per step", may_change=True)
    max_train_steps: int | None = option(6, "steps", may_change=True)
    report_to: str = option("none", "no logs", may_change=True)
    method: str = option("lora", "method")
    dropout: float = option(0.0, "drop-out before the adapters and in the network")
    num_samples: int = option(10, "size of the dataset")
    nan_sample: int = option(-1, "the sample whose image is NaN", may_change=True)
    kill_in_step: int = option(-1, "the step in which a process gets a SIGTERM", may_change=True)
    kill_worker_at: int = option(-1, "the sample at which the process that loads it is killed", may_change=True)
    kill_rank: int = option(0, "the number of that process", may_change=True)
    full_disk_in_step: int = option(-1, "the step from which on no file can be written", may_change=True)
    kill_in_evaluation: int = option(-1, "the evaluation in which it does", may_change=True)


class NoisyColors(torch.utils.data.Dataset):
    """Images of three colors, with noise drawn from the sample's seed."""

    def __init__(self, config: TinyConfig):
        self.config = config

    def __len__(self) -> int:
        return self.config.num_samples

    def __getitem__(self, ref: SampleRef) -> dict:
        ref = SampleRef.of(ref)
        label = ref.index % 3
        image = seeding.randn([ref.seed], (3, 16, 16))[0] * 0.5
        image[label] += 1.0
        if ref.index == self.config.kill_worker_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if ref.index == self.config.nan_sample:
            image[0, 0, 0] = float("nan")
        return {"image": image, "label": label, "seed": ref.seed, "path": f"images/{ref.index}.png"}


class TinyTask(Task):
    """Classification, which counts its calls so that a test can have something happen at a known moment."""

    def __init__(self, model: peft.PeftModel, config: TinyConfig, rank: int = 0):
        super().__init__(model, AdapterInfo("classification", config.method, "tiny", protocol="10 samples"))
        self.config, self.rank = config, rank
        self.forwards = self.evaluations = 0

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        step, micro = divmod(self.forwards, self.config.gradient_accumulation_steps)
        if micro == 0 and step == self.config.kill_in_step and self.rank == self.config.kill_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == self.config.full_disk_in_step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
        self.forwards += 1
        return self._outputs(batch)

    def validation_loss(self, batch: dict) -> torch.Tensor:
        return self._outputs(batch)["loss"]

    def _outputs(self, batch: dict) -> dict[str, torch.Tensor]:
        logits = self.model(batch["image"])
        loss = torch.nn.functional.cross_entropy(logits, batch["label"])
        return {"loss": loss, "accuracy": (logits.argmax(1) == batch["label"]).float().mean()}

    def evaluate(self, loader, accelerator) -> dict[str, float]:
        if self.evaluations == self.config.kill_in_evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        self.evaluations += 1
        hits = [
            accelerator.gather_for_metrics((self.model(batch["image"]).argmax(1) == batch["label"]).float())
            for batch in loader
        ]
        weight = sum(p.double().abs().sum().item() for n, p in self.model.named_parameters() if "lora" in n)
        return {"accuracy": torch.cat(hits).mean().item(), "weight": weight}


def tiny_model(config: TinyConfig) -> peft.PeftModel:
    seeding.seed_all(1)
    model = timm.models.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=3, proj_drop_rate=config.dropout
    )
    for norm in (norm for block in model.blocks for norm in (block.norm1, block.norm2)):
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)  # or the sums behind them would be rounding errors
    places = {"target_modules": ["qkv", "fc1"], "modules_to_save": ["head"]}
    lora = peft.LoraConfig(r=1, lora_alpha=1, lora_dropout=config.dropout, **places)
    adapted = peft.get_peft_model(model, OneLoraConfig(**places) if config.method == "onelora" else lora)
    adapted.whole_modules = ("head",)  # as apply_method notes it
    return adapted


def run(config: TinyConfig) -> tuple[TrainingSummary, dict[str, torch.Tensor], dict[str, float]]:
    """The summary, the trained tensors and the last evaluation's metrics."""
    with start_run(config) as run, run.phase("training"):
        accelerator, dataset = run.accelerator, NoisyColors(config)
        task = TinyTask(tiny_model(config), config, accelerator.process_index)
        loader = accelerator.prepare(evaluation_loader(dataset, 4))
        watched = None if config.validation_loss_steps is None else WatchedSamples(dataset)
        summary = train(run, task, dataset, loader, watched)
        model = accelerator.unwrap_model(task.model)
        trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        metrics = evaluate(task, loader, accelerator)
        if accelerator.is_main_process:
            torch.save((vars(summary), trained, metrics), Path(config.output_dir) / "result.pt")
    return summary, trained, metrics


@exits_cleanly
def main() -> None:
    run(parse_config(TinyConfig, description="A tiny job."))


if __name__ == "__main__":
    main()
