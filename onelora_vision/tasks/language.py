"""Language modelling of answers: cross-entropy on the answer tokens, also evaluated by the answers' final numbers."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from onelora_vision.adapters.info import AdapterInfo
from onelora_vision.backbones.language import LanguageBase
from onelora_vision.data.text.dataset import IGNORED, TextDataset
from onelora_vision.metrics.answers import same_number
from onelora_vision.storage.files import write_json
from onelora_vision.tasks.base import EXAMPLES, Task

_UNSEEN = -1


class LanguageTask(Task):
    """Trains and evaluates a language model on questions with answers.

    Args:
        model: the network of ``base`` with its adapters.
        base: the network with its tokenizer.
        info: the description in the adapter's files.
        judged: the rows of the evaluations before and after training.
        exact_match_samples: number of an evaluation's first rows for which answers are generated and compared; 0: none.
        examples: number of answers in the report.
        max_new_tokens: maximum number of tokens of an answer.

    Attributes:
        details: ``completion`` (examples, max_new_tokens), token ids of the first answers.
    """

    def __init__(
        self,
        model: PeftModel,
        base: LanguageBase,
        info: AdapterInfo | None = None,
        judged: TextDataset | None = None,
        exact_match_samples: int = 0,
        examples: int = 0,
        max_new_tokens: int = 256,
    ):
        super().__init__(model, info)
        self.base, self.judged, self.max_new_tokens = base, judged, max_new_tokens
        self.exact_match_samples, self.examples = exact_match_samples, examples

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """Mean cross-entropy of the batch's answer tokens as ``loss``, in nats; their top-1 accuracy as ``accuracy``.

        ``batch``: from `data.text.dataset.TextDataset` or `data.text.packing.PackedDataset`.
        """
        logits, labels = answer_logits(self.model, batch)
        accuracy = (logits.argmax(1) == labels).float().mean()
        return {"loss": F.cross_entropy(logits, labels), "accuracy": accuracy}

    def weight(self, batch: dict) -> int:
        """The number of answer tokens."""
        return int((batch["labels"][:, 1:] != IGNORED).sum())

    def evaluate(self, loader, accelerator) -> dict[str, float]:
        """``loss`` in nats per answer token and ``perplexity`` over all rows of ``loader``, and ``exact_match``.

        ``exact_match`` is the fraction of the first rows whose greedily generated answer ends in the true answer's
        number.

        Each row counts once, regardless of the number of processes.
        """
        rows = getattr(loader.dataset, "rows", None)
        parts: dict[str, list[Tensor]] = {}
        for batch in loader:
            with accelerator.autocast():
                losses, counts = answer_losses(self.model, batch)
                found = {"loss": losses, "count": counts, "index": batch["index"], **self._written(batch, rows)}
            for name, values in accelerator.gather_for_metrics(found).items():
                parts.setdefault(name, []).append(values.cpu())
        whole = {name: torch.cat(values) for name, values in parts.items()}
        loss = (whole["loss"].double().sum() / whole["count"].sum()).item()
        metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        right = whole.get("right", torch.empty(0))
        if len(judged := right[right != _UNSEEN]):
            metrics["exact_match"] = judged.double().mean().item()
        first = whole["index"].argsort()[: self.examples]
        self.details = {"completion": whole["completion"][first]} if self.examples else {}
        return metrics

    def _written(self, batch: dict, rows) -> dict[str, Tensor]:
        """Answers to the batch's rows among the first, and whether they are right; `_UNSEEN` for other rows."""
        most = max(self.exact_match_samples, self.examples)
        if most == 0:
            return {}
        index, device = batch["index"], batch["input_ids"].device
        right = torch.full((len(index),), _UNSEEN, device=device)
        pad = self.base.tokenizer.pad_token_id
        completion = torch.full((len(index), self.max_new_tokens), pad, device=device)
        chosen = [place for place, number in enumerate(index.tolist()) if number < most]
        if chosen:
            prompts = [batch["input_ids"][place][: batch["prompt_length"][place]] for place in chosen]
            completion[chosen] = self.base.continue_tokens(prompts, self.max_new_tokens, self.model)
        for place in chosen:
            number = int(index[place])
            if number < self.exact_match_samples:
                right[place] = same_number(self.base.text_of(completion[place]), rows[number].response)
        return {"right": right, "completion": completion}

    def report(self, folder: Path, step: int, before: dict, after: dict, accelerator) -> None:
        """``examples.json``: questions, true answers, and generated answers before and after training."""
        if not accelerator.is_main_process or self.judged is None or "completion" not in after:
            return
        answers = zip(self.judged.rows, before["completion"], after["completion"])
        examples = [
            {
                "query": row.query,
                "truth": row.response,
                **{
                    when: {"answer": text, "right": same_number(text, row.response)}
                    for when, text in (("before", self.base.text_of(first)), ("after", self.base.text_of(last)))
                },
            }
            for row, first, last in answers
        ]
        write_json(folder / EXAMPLES, examples)


def answer_logits(model: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
    """Logits in fp32 (answer tokens of the batch, vocabulary) and the tokens that they predict."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    output = model(**inputs, use_cache=False)
    labels = batch["labels"][:, 1:]
    learnt = labels != IGNORED
    return output.logits[:, :-1][learnt].float(), labels[learnt]


def answer_losses(model: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of each row's answer tokens (B,) in nats, and their number (B,)."""
    logits, labels = answer_logits(model, batch)
    learnt = batch["labels"][:, 1:] != IGNORED
    each = torch.zeros(learnt.shape, device=logits.device)
    each[learnt] = F.cross_entropy(logits, labels, reduction="none")
    return each.sum(1), learnt.sum(1)
