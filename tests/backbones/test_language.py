import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from onelora_vision import probe_gradients
from onelora_vision.backbones.llama import llama_adaptation
from onelora_vision.methods.apply import apply_method


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def test_every_linear_of_the_decoder_and_not_the_head(llama):
    adaptation = llama_adaptation(llama)
    assert len(adaptation.target_modules) == 14 and "lm_head" not in adaptation.target_modules
    assert len(adaptation.norm_modules) == 5


@pytest.mark.parametrize("method", ["onelora", "onelora_norms", "bitfit", "difffit", "lora", "vera", "mora6"])
def test_trains_and_merges_also_without_biases(llama, method):
    tokens = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(1))
    model = apply_method(llama, method, llama_adaptation(llama))
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
