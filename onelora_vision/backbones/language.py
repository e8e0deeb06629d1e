"""Causal language models of transformers, such as LLaMA, the last system in the paper."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from onelora_vision import embedded
from onelora_vision.backbones.base import (
    Adaptation,
    Base,
    block_list,
    norms_with_parameters,
    quiet_transformers,
    save_transformers,
)
from onelora_vision.backbones.transformers_loading import LOADING_ERRORS, load_transformers, require_place
from onelora_vision.errors import InputError, one_line

_log = logging.getLogger(__name__)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_ROUNDING, _ROUNDING_16_BITS = 1e-3, 5e-2  # largest relative differences of logits by rounding alone
LENGTH = 512  # default tokens of `LanguageBase.example` for a network without weights
TRIAL_LENGTH = 32  # the same for a loaded network, which runs on the example


@dataclass(kw_only=True)
class LanguageBase(Base):
    """A decoder of transformers with its tokenizer: token ids (B, T) -> ``logits`` (B, T, vocabulary).

    Attributes:
        tokenizer: None for a network built without weights, for counting and planning.
        length: sequence length of `example`, in tokens.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None = None
    length: int = LENGTH

    task, host = "language", "transformers"
    fit_settings = ()
    use_settings = ("base_dtype",)

    @classmethod
    def load(
        cls,
        source: str | Path = "embedded/language",
        *,
        revision: str | None = None,
        cache_dir: str | None = None,
        base_dtype: str = "fp32",
    ) -> Self:
        """Load a folder or hub id with its tokenizer, in a dtype of `DTYPES`.

        A tokenizer without a padding token uses its end token for padding.

        Raises:
            InputError: the model or dtype does not exist, the model is not a decoder, its file lacks some of the
                weights, or it has no tokenizer with an end token.
        """
        source = embedded.resolve(cls.task, source)
        if base_dtype not in DTYPES:
            raise InputError(f"base_dtype {one_line(repr(base_dtype), 40)}: must be {' or '.join(DTYPES)}")
        require_place(source, "causal language")
        where = {"revision": revision, "cache_dir": cache_dir}
        try:
            with quiet_transformers():
                config = AutoConfig.from_pretrained(source, **where)
        except LOADING_ERRORS as error:
            raise InputError(f"{source}: its config cannot be read ({one_line(error, 300)})") from error
        _require_decoder(config, source)
        model = load_transformers(AutoModelForCausalLM, source, "a language model", dtype=DTYPES[base_dtype], **where)
        tokenizer = load_tokenizer(source, len_of(model), **where)
        return cls(model=model, source=source, tokenizer=tokenizer, length=TRIAL_LENGTH)

    @classmethod
    def from_config(cls, config: dict, num_classes: int | None = None, fuse_qkv: bool = False) -> Self:
        if num_classes or fuse_qkv:
            raise InputError("a language model has no classes, and its q, k, v cannot be fused")
        found = AutoConfig.for_model(**config)
        _require_decoder(found, config["model_type"])
        found.use_cache = False  # as in training
        return cls(model=AutoModelForCausalLM.from_config(found))

    def _fit(self, class_names: list[str] | None, *, seed: int, **settings: Any) -> None:
        if class_names or settings.get("fuse_qkv"):
            raise InputError("a language model has no classes, and its q, k, v cannot be fused")

    def adaptation(self) -> Adaptation:
        return decoder_adaptation(self.model)

    def replaced_modules(self) -> list[str]:
        return []

    def example(self, batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(len_of(self.model), (batch, self.length), generator=generator)
        return {"input_ids": ids}

    def require_positions(self, tokens: int) -> None:
        """Check that the network has enough positions for a row of ``tokens``.

        Raises:
            InputError: it has fewer, and would fail or produce nonsense beyond them.
        """
        if self.positions is not None and tokens > self.positions:
            raise InputError(
                f"{self.source}: knows {self.positions:,} positions, but the longest row has {tokens:,} tokens: lower "
                "--max_length"
            )

    def require_room(self, prompt: int, max_new_tokens: int) -> None:
        """Check that the network has enough positions for a prompt and its answer, both in tokens.

        Raises:
            InputError: it has fewer.
        """
        if self.positions is not None and prompt + max_new_tokens > self.positions:
            raise InputError(
                f"{self.source}: knows {self.positions:,} positions, but the longest prompt has {prompt:,} tokens and its "
                f"answer may have {max_new_tokens:,}: ask something shorter, or lower --max_new_tokens"
            )

    @property
    def positions(self) -> int | None:
        """The largest number of tokens in a sequence, or None if the network's config does not limit it."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def set_length(self, tokens: int) -> None:
        if tokens < 1:
            raise InputError(f"--max_length is {tokens}, but must be at least 1")
        self.length = tokens

    @torch.no_grad()
    def require_packing(self) -> None:
        """Check that rows packed into one sequence and separated by their positions do not attend to each other.

        Raises:
            InputError: a row's logits depend on the row packed before it.
        """
        device = next(self.model.parameters()).device
        in_fp32 = self.model.dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
        before, row = (torch.arange(start, start + 4, device=device) % len_of(self.model) for start in (5, 11))
        positions = torch.arange(4, device=device)
        try:
            alone = self.model(input_ids=row[None], position_ids=positions[None], use_cache=False).logits[0].float()
            both = {"input_ids": torch.cat([before, row]), "position_ids": positions.repeat(2)}
            packed = self.model(**{name: ids[None] for name, ids in both.items()}, use_cache=False).logits[0, 4:]
            difference = (packed.float() - alone).norm() / (alone - alone.mean()).norm()
            apart = difference < (_ROUNDING if in_fp32 else _ROUNDING_16_BITS)
        except (TypeError, ValueError, RuntimeError, NotImplementedError):  # it does not accept positions
            apart = False
        if not apart:
            raise InputError(
                f"--packing: {type(self.model).__name__} does not keep rows of one sequence apart by their positions; "
                "leave it out"
            )

    @torch.no_grad()
    def complete(
        self,
        prompts: Sequence[str],
        *,
        model: nn.Module | None = None,
        max_new_tokens: int = 256,
        batch_size: int = 16,
    ) -> list[str]:
        """Complete each prompt greedily (with the most probable token at each step) up to the end token.

        ``model`` replaces the base's own network: the same network with an adapter.
        """
        answers = []
        for start in range(0, len(prompts), batch_size):
            encoded = self.tokenizer(list(prompts[start : start + batch_size]), verbose=False)["input_ids"]
            found = self.continue_tokens([torch.tensor(ids) for ids in encoded], max_new_tokens, model)
            answers += [self.text_of(ids) for ids in found]
        return answers

    def continue_tokens(
        self, prompts: Sequence[Tensor], max_new_tokens: int, model: nn.Module | None = None
    ) -> Tensor:
        """Continue a batch of prompts, each token ids (T_i,), greedily: (B, max_new_tokens), padded after the end.

        Raises:
            InputError: see `require_room`.
        """
        model, pad = model or self.model, self.tokenizer.pad_token_id
        device = next(model.parameters()).device
        length = max(map(len, prompts))
        self.require_room(length, max_new_tokens)
        ids = torch.full((len(prompts), length), pad, device=device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):  # padded on the left, so all prompts end where the answers begin
            ids[row, length - len(prompt) :] = prompt.to(device)
            mask[row, length - len(prompt) :] = 1
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=self.tokenizer.eos_token_id
        )
        with _plain_generation(model), self._own_precision(device):
            found = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)[:, length:]
        return nn.functional.pad(found, (0, max_new_tokens - found.shape[1]), value=pad)

    def _own_precision(self, device: torch.device) -> contextlib.AbstractContextManager:
        """Autocast to bf16 if the weights are bf16, as in training, which added vectors in fp32; else do nothing."""
        if self.model.dtype != torch.bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(device.type, torch.bfloat16)

    def text_of(self, ids: Tensor) -> str:
        """The text of a continuation up to the end token."""
        kept = ids.tolist()
        if self.tokenizer.eos_token_id in kept:
            kept = kept[: kept.index(self.tokenizer.eos_token_id)]
        return self.tokenizer.decode(kept, skip_special_tokens=True).strip()

    def save_merged(self, model: nn.Module, folder: Path, dtype: torch.dtype, max_shard_size: str) -> None:
        save_transformers(model, folder, dtype, max_shard_size, self.source)
        self.tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def _plain_generation(model: nn.Module) -> Iterator[None]:
    """Ignore the model's own generation config, which may add things such as a repetition penalty."""
    network = model.get_base_model() if isinstance(model, PeftModel) else model
    own, network.generation_config = network.generation_config, GenerationConfig()
    try:
        yield
    finally:
        network.generation_config = own


def len_of(model: PreTrainedModel) -> int:
    """The size of the network's vocabulary."""
    return model.get_input_embeddings().num_embeddings


def decoder_adaptation(model: nn.Module) -> Adaptation:
    """Select every linear of the decoder's blocks, but not ``lm_head``.

    LLaMA-2 7B: 224 layers, 1,359,872 parameters of b.

    Raises:
        InputError: the blocks contain no `Linear`, as in GPT-2.
    """
    inside = f"{block_list(model) or 'model.layers'}."  # `block_list` does not find a single block
    linears = [
        name for name, module in model.named_modules() if name.startswith(inside) and isinstance(module, nn.Linear)
    ]
    if not linears:
        raise InputError(
            f"{type(model).__name__} has no linear layers in a list of blocks for the methods: choose another model"
        )
    return Adaptation(target_modules=linears, norm_modules=norms_with_parameters(model))


def load_tokenizer(source: str, vocabulary: int, **where: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model with ``vocabulary`` tokens, padding on the right.

    Raises:
        InputError: the tokenizer is missing, has no end token, or has more tokens than the model.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **where)
    except (*LOADING_ERRORS, ImportError) as error:
        raise InputError(f"{source}: its tokenizer cannot be loaded ({one_line(error, 300)})") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"{source}: its tokenizer has no end token (eos_token), without which no answer would end")
    if len(tokenizer) > vocabulary:
        raise InputError(
            f"{source}: its tokenizer has {len(tokenizer):,} tokens, but the model knows {vocabulary:,}: they do not belong "
            "together"
        )
    if tokenizer.pad_token_id is None:
        _log.warning("%s: its tokenizer has no padding token; using %s, masked out", source, tokenizer.eos_token)
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def _require_decoder(config: Any, source: str) -> None:
    kind = config.model_type
    is_encoder = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    if getattr(config, "is_encoder_decoder", False) or is_encoder:
        raise InputError(
            f"{source}: a {kind!r} model, which is not a decoder; give a causal language model such as LLaMA"
        )
    if kind not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(f"{source}: a {kind!r} model, which is not a causal language model of transformers")
