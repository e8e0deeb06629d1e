import json
import logging

import pytest
import torch
from tiny_language import byte_tokenizer, save_llama, tiny_llama
from transformers import BertConfig, BertLMHeadModel, GPT2Config, GPT2LMHeadModel

from onelora_vision import embedded, probe_gradients
from onelora_vision.backbones.catalogue import describe
from onelora_vision.backbones.language import LanguageBase, decoder_adaptation
from onelora_vision.backbones.table import ROWS
from onelora_vision.errors import InputError
from onelora_vision.methods.apply import apply_method


@pytest.fixture
def llama():
    return tiny_llama(vocab_size=50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama"))


def test_every_linear_of_the_decoder_and_not_the_head(llama):
    adaptation = decoder_adaptation(llama)
    assert len(adaptation.target_modules) == 14 and "lm_head" not in adaptation.target_modules
    assert len(adaptation.norm_modules) == 5


@pytest.mark.parametrize("method", ["onelora", "onelora_norms", "bitfit", "difffit", "lora", "vera", "mora6"])
def test_trains_and_merges_also_without_biases(llama, method):
    tokens = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(1))
    model = apply_method(llama, method, decoder_adaptation(llama))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(20):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        if step == 0:
            probe_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(input_ids=tokens).logits, expected, rtol=1e-4, atol=1e-4)


SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "ffn_dim": 32,
    "word_embed_proj_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 60,
    "pad_token_id": 0,
}
NAMES = next(row.names for row in ROWS if row.task == "language")


@pytest.mark.parametrize("model_type", NAMES)
def test_each_family_of_the_table_is_built_and_adapted(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **SIZES}))
    base = describe(str(tmp_path))
    assert isinstance(base, LanguageBase)
    linears = base.adaptation().target_modules
    assert len(linears) % 2 == 0 and 8 <= len(linears) <= 14
    assert base.example(2)["input_ids"].shape == (2, 512) and int(base.example(2)["input_ids"].max()) < 60


def test_completions_do_not_depend_on_the_batch_that_they_are_written_in(folder):
    base = LanguageBase.load(folder)
    prompts = ["a", "two words and more", "ccc"]
    together = base.complete(prompts, max_new_tokens=6)
    assert together == [base.complete([prompt], max_new_tokens=6)[0] for prompt in prompts]
    ids = torch.tensor(base.tokenizer("a")["input_ids"])[None]
    for _ in range(6):
        ids = torch.cat([ids, base.model(input_ids=ids).logits[:, -1].argmax(1, keepdim=True)], 1)
    assert base.text_of(ids[0, 2:]) == together[0]


def test_completions_are_greedy_whatever_the_model_s_own_generation_config_says(folder, capfd):
    plain, base = LanguageBase.load(folder), LanguageBase.load(folder)
    own = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 400, "repetition_penalty": 2.0}
    base.model.generation_config.update(**own)
    model = apply_method(base.model, "onelora", base.adaptation())
    answers = base.complete(["abc"], model=model, max_new_tokens=12)
    assert answers == plain.complete(["abc"], max_new_tokens=12) == base.complete(["abc"], max_new_tokens=12)
    assert base.model.generation_config.repetition_penalty == 2 and capfd.readouterr() == ("", "")


def test_a_completion_ends_at_the_end_token(folder):
    base = LanguageBase.load(folder)
    ids = base.tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert base.text_of(torch.tensor([*ids, base.tokenizer.eos_token_id, *ids])) == "ab"
    with torch.no_grad():
        base.model.lm_head.weight.zero_()
        base.model.lm_head.weight[2] = 1.0
        base.model.model.norm.weight.fill_(0)
    assert base.continue_tokens([torch.tensor([1, 5])], 4).shape == (1, 4)


def test_the_merged_model_has_its_tokenizer(folder, tmp_path):
    base = LanguageBase.load(folder)
    base.save_merged(base.model, tmp_path / "merged", torch.float32, "1GB")
    again = LanguageBase.load(tmp_path / "merged")
    assert again.fingerprint() == base.fingerprint() and again.complete(["x"]) == base.complete(["x"])


def test_weights_in_bf16_are_the_same_base(folder):
    base = LanguageBase.load(folder, base_dtype="bf16")
    assert base.model.dtype == torch.bfloat16
    assert base.fingerprint() == LanguageBase.load(folder).fingerprint()


def test_without_a_padding_token_the_end_token_pads(tmp_path, caplog):
    save_llama(tmp_path, pad=None)
    with caplog.at_level(logging.WARNING):
        base = LanguageBase.load(tmp_path)
    assert base.tokenizer.pad_token_id == base.tokenizer.eos_token_id == 2
    assert "no padding token; using </s>" in caplog.text
    save_llama(tmp_path / "with")
    with_pad = LanguageBase.load(tmp_path / "with")
    prompts = ["a", "longer than that"]
    assert base.complete(prompts, max_new_tokens=5) == with_pad.complete(prompts, max_new_tokens=5)


def tokenizer_without_end(folder):
    save_llama(folder)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)


def encoder(folder):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertLMHeadModel(BertConfig(vocab_size=9, is_decoder=True, **sizes)).save_pretrained(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"is_decoder": true', '"is_decoder": false'))


def no_language_model(folder):
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vit"}')


def missing_weights(folder):
    save_llama(folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (encoder, "a 'bert' model, which is not a decoder"),
        (no_language_model, "a 'vit' model, which is not a causal language model"),
        (tokenizer_without_end, "no end token"),
        (lambda folder: tiny_llama().save_pretrained(folder), "its tokenizer cannot be loaded"),
        (lambda folder: save_llama(folder, vocab_size=100), "has 259 tokens, but the model knows 100"),
        (missing_weights, "the weights do not fit the model"),
        (lambda folder: folder.mkdir(), "no config.json there"),
        (lambda folder: None, "no such folder"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(make, message, tmp_path):
    make(tmp_path / "model")
    with pytest.raises(InputError) as caught:
        LanguageBase.load(tmp_path / "model")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", NAMES)
def test_rows_are_packed_only_where_the_model_keeps_them_apart(model_type):
    base = LanguageBase.from_config({"model_type": model_type, **SIZES})
    base.model.eval()
    if model_type != "opt":
        return base.require_packing()
    with pytest.raises(InputError, match="--packing: OPTForCausalLM does not keep rows of one sequence apart"):
        base.require_packing()


def test_a_model_without_linear_layers_is_refused():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=1, vocab_size=9, n_positions=8))
    with pytest.raises(InputError, match="GPT2LMHeadModel has no linear layers"):
        decoder_adaptation(model)


def test_the_embedded_base_is_small_and_does_plain_sums():
    assert sum(file.stat().st_size for file in embedded.LANGUAGE.iterdir()) < 1e6
    base = LanguageBase.load()
    from onelora_vision.data.text.prompts import METAMATH, prompt_of

    answers = base.complete([prompt_of("What is 12 plus 9?", METAMATH)], max_new_tokens=32)
    assert answers == ["12 + 9 = 21. The answer is: 21"]
