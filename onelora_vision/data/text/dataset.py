"""Questions and answers as token ids, in batches padded to their longest row."""

import hashlib
import logging
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from onelora_vision.data.stream import SampleRef
from onelora_vision.data.text.prompts import prompt_of
from onelora_vision.data.text.rows import Row
from onelora_vision.errors import MissingSplit
from onelora_vision.runtime.progress import progress

_log = logging.getLogger(__name__)
IGNORED = -100  # label of tokens without a loss: the prompt and padding
_CHUNK = 1000


class TextDataset(Dataset):
    """Rows of prompt, answer and end token, as ``input_ids``, ``labels`` and ``attention_mask`` (T,).

    Prompt and answer are tokenized separately, so a prompt has the same tokens in training and for completion. Labels
    are `IGNORED` in the prompt and in the padding, which is on the right and masked out.

    Attributes:
        rows: the rows that are kept.
        pad: the padding token.
        cut: number of rows that were cut because they were too long.
        skipped: number of rows that were left out because they were too long.
    """

    def __init__(self, rows: Sequence[Row], tokens: Tensor, starts: Tensor, prompts: Tensor, pad: int):
        self.rows, self.cut, self.skipped = list(rows), 0, 0
        self._tokens, self._starts, self._prompts, self.pad = tokens, starts, prompts, pad

    @classmethod
    def of(cls, rows: Sequence[Row], tokenizer: Any, template: str, max_length: int, long_rows: str = "cut") -> Self:
        """Tokenize rows.

        Args:
            tokenizer: tokenizer of transformers with an end token and a padding token.
            template: see `prompts.find_template`.
            max_length: maximum length of a row in tokens, including the end token.
            long_rows: "cut" truncates the answer of a longer row, "skip" leaves the row out. A row whose prompt alone
                is that long leaves nothing to learn and is always skipped.

        Raises:
            MissingSplit: no row is left.
        """
        kept, pieces, prompts, cut = [], [], [], 0
        chunks = range(0, len(rows), _CHUNK)
        for start in progress(chunks, len(chunks), desc="tokenizing", unit="chunk") if len(chunks) > 1 else chunks:
            part = rows[start : start + _CHUNK]
            asked = tokenizer([prompt_of(row.query, template) for row in part], verbose=False)["input_ids"]
            answered = tokenizer([row.response for row in part], add_special_tokens=False, verbose=False)["input_ids"]
            for row, prompt, answer in zip(part, asked, answered):
                if prompt[-1:] == [tokenizer.eos_token_id]:  # some tokenizers end every text
                    prompt = prompt[:-1]
                ids = [*prompt, *answer, tokenizer.eos_token_id]
                if len(ids) > max_length:
                    if long_rows == "skip" or len(prompt) >= max_length:
                        continue
                    cut += 1
                kept.append(row)
                prompts.append(len(prompt))
                pieces.append(torch.tensor(ids[:max_length], dtype=torch.int32))
        if not kept:
            raise MissingSplit(f"none of {len(rows)} rows has an answer within --max_length {max_length} tokens")
        starts = torch.tensor([0, *map(len, pieces)]).cumsum(0)
        found = cls(kept, torch.cat(pieces), starts, torch.tensor(prompts), tokenizer.pad_token_id)
        found.cut, found.skipped = cut, len(rows) - len(kept)
        return found

    def __len__(self) -> int:
        return len(self.rows)

    def length_of(self, index: int) -> int:
        """The number of tokens in a row, including the end token."""
        return int(self._starts[index + 1] - self._starts[index])

    @property
    def longest(self) -> int:
        """The length of the longest row in tokens."""
        return int(self._starts.diff().max())

    def longest_prompt(self, count: int) -> int:
        """The length of the longest prompt among the first ``count`` rows, in tokens."""
        return int(self._prompts[:count].max())

    def __getitem__(self, ref: SampleRef | int) -> dict[str, Any]:
        return self.__getitems__([ref])[0]

    def __getitems__(self, refs: Sequence[SampleRef | int]) -> list[dict[str, Any]]:
        """The rows of a batch, padded to the longest of them."""
        found = [SampleRef.of(ref) for ref in refs]
        length = max(self.length_of(ref.index) for ref in found)
        return [self._item(ref, length) for ref in found]

    def _item(self, ref: SampleRef, length: int) -> dict[str, Any]:
        ids = self._tokens[self._starts[ref.index] : self._starts[ref.index + 1]].long()
        prompt, padding = int(self._prompts[ref.index]), length - len(ids)
        labels = ids.clone()
        labels[:prompt] = IGNORED
        return {
            "input_ids": torch.nn.functional.pad(ids, (0, padding), value=self.pad),
            "labels": torch.nn.functional.pad(labels, (0, padding), value=IGNORED),
            "attention_mask": (torch.arange(length) < len(ids)).long(),
            "prompt_length": prompt,
            "index": ref.index,
            "seed": ref.seed,
            "path": self.rows[ref.index].where,
        }

    def identity(self) -> str:
        """A hash of the rows' tokens."""
        digest = hashlib.sha256(self._tokens.numpy().tobytes())
        digest.update(self._starts.numpy().tobytes())
        return digest.hexdigest()[:32]
