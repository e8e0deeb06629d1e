import copy
import json
import shutil

import pytest
import torch
from diffusers import DiTPipeline
from reference_dit import ReferenceDiT

from onelora_vision.backbones.dit import DiTBase, class_ids, dit_adaptation, save_pipeline
from onelora_vision.backbones.dit_network import DiT
from onelora_vision.errors import InputError

XL = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_layers": 28,
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 8,
}


@pytest.fixture
def inputs():
    torch.manual_seed(5)
    return torch.randn(4, 4, 8, 8), torch.tensor([3, 100, 500, 999]), torch.tensor([0, 3, 9, 10])


@torch.no_grad()
def test_equals_the_original_bit_for_bit_and_stock_diffusers_does_not(stock_dit, inputs):
    weights = {**stock_dit.state_dict(), "positions": stock_dit.pos_embed.pos_embed}
    expected = ReferenceDiT(weights, heads=2, depth=2, out_channels=8)(*inputs)
    stock_output = stock_dit(*inputs).sample
    model = DiT.from_stock(copy.deepcopy(stock_dit))
    assert torch.equal(model(*inputs).sample, expected)
    model.set_numerics(stock=True)
    assert torch.equal(model(*inputs).sample, stock_output)
    assert (stock_output - expected).abs().max() > 1e-2


@torch.no_grad()
def test_equals_the_original_at_times_between_0_and_1(stock_dit, inputs):
    """SiT's: the time is not scaled before its sines and cosines."""
    weights = {**stock_dit.state_dict(), "positions": stock_dit.pos_embed.pos_embed}
    x, t, labels = inputs[0], torch.tensor([0.0, 0.3, 0.96, 1.0]), inputs[2]
    expected = ReferenceDiT(weights, heads=2, depth=2, out_channels=8)(x, t, labels)
    assert torch.equal(DiT.from_stock(copy.deepcopy(stock_dit))(x, t, labels).sample, expected)


def test_has_one_embedder_and_the_papers_counts():
    with torch.device("meta"):
        model = DiT.from_config({**XL, "num_embeds_ada_norm": 1000})
    assert sum(p.numel() for p in model.parameters()) == 674_834_720
    with torch.device("meta"):
        model = DiT.from_config({**XL, "num_embeds_ada_norm": 101})
    adaptation = dit_adaptation(model)
    assert len(adaptation.target_modules) == 198
    assert adaptation.norm_modules == []
    values = sum(model.get_submodule(name).out_features for name in adaptation.target_modules)
    table = model.get_submodule(adaptation.whole_modules[0])
    assert (values, table.weight.numel()) == (486_176, 117_504)
    assert values + table.weight.numel() == 603_680


def test_training_mode_draws_no_label_dropout(dit, inputs):
    dit.train()
    with torch.no_grad():
        first, second = dit(*inputs).sample, dit(*inputs).sample
    assert torch.equal(first, second)
    assert torch.equal(first, dit.eval()(*inputs).sample)


def test_gradient_checkpointing_changes_nothing(dit, inputs):
    gradients = []
    for checkpointing in (False, True):
        dit.train().zero_grad()
        (dit.enable_gradient_checkpointing if checkpointing else dit.disable_gradient_checkpointing)()
        dit(*inputs).sample.square().mean().backward()
        gradients.append(dit.conditioning.timestep_embedder.linear_1.weight.grad.clone())
    assert torch.equal(*gradients)


@torch.no_grad()
def test_fused_qkv_gives_the_same_output_and_goes_back(dit, inputs):
    expected = dit(*inputs).sample
    dit.fuse_qkv().fuse_qkv()
    names = dit_adaptation(dit).target_modules
    assert "transformer_blocks.0.attn1.to_qkv" in names and not any("to_q." in f"{n}." for n in names)
    torch.testing.assert_close(dit(*inputs).sample, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(dit.unfuse_qkv()(*inputs).sample, expected)


@torch.no_grad()
def test_new_classes_keep_named_rows_and_the_null_class(dit):
    old = dit.label_table.weight.clone()
    kept = dit.set_classes(["five", "new", "two"], ["a", "b", "two", "c", "d", "five", "e", "f", "g", "h"])
    assert kept.rows == {"five": 5, "two": 2}
    table = dit.label_table.weight
    assert table.shape == (4, 32) and dit.null_class == 3 and dit.config.num_embeds_ada_norm == 3
    assert torch.equal(table[[0, 2, 3]], old[[5, 2, 10]])
    assert table[1].norm() > 0.2 * old.norm(dim=1).mean()
    assert torch.isfinite(dit(torch.zeros(1, 4, 8, 8), torch.tensor([1]), torch.tensor([3])).sample).all()


@torch.no_grad()
def test_pipeline_folder_round_trip_through_stock_diffusers(dit_folder, tmp_path, inputs):
    base = DiTBase.load(dit_folder)
    assert base.class_names[7] == "thing 7, thing-7" and base.model.null_class == 1000
    base.model.set_classes(["pizza", "sushi"])
    base.class_names = ["pizza", "sushi"]
    save_pipeline(base, tmp_path / "saved")
    stock = DiTPipeline.from_pretrained(tmp_path / "saved")
    assert stock.labels == {"pizza": 0, "sushi": 1}
    again = DiTBase.load(tmp_path / "saved")
    assert again.class_names == ["pizza", "sushi"]
    latents, timesteps, _ = inputs
    labels = torch.tensor([0, 1, 2, 2])
    base.model.eval()
    assert torch.equal(again.model(latents, timesteps, labels).sample, base.model(latents, timesteps, labels).sample)
    stock_numerics = DiTBase.load(tmp_path / "saved", stock_numerics=True).model
    assert torch.equal(
        stock_numerics(latents, timesteps, labels).sample, stock.transformer(latents, timesteps, labels).sample
    )


def test_embedders_trained_apart_are_refused(stock_dit):
    with torch.no_grad():
        stock_dit.transformer_blocks[1].norm1.emb.timestep_embedder.linear_2.bias += 1
    with pytest.raises(InputError, match=r"transformer_blocks\.1\.norm1\.emb\.timestep_embedder\.linear_2\.bias"):
        DiT.from_stock(stock_dit)


def test_a_scheduler_of_no_known_objective_is_refused_by_name(dit_folder, tmp_path):
    shutil.copytree(dit_folder, tmp_path / "other")
    place = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "prediction_type": "v_prediction"}))
    with pytest.raises(InputError, match="other: its scheduler has prediction_type 'v_prediction'"):
        DiTBase.load(tmp_path / "other")


def test_the_example_has_times_of_the_objective(sit_folder, dit_folder):
    assert DiTBase.load(dit_folder).example()["timestep"].tolist() == [50, 450, 850]
    times = DiTBase.load(sit_folder).example()["timestep"]
    torch.testing.assert_close(times, torch.tensor([0.95, 0.55, 0.15]))


def test_a_folder_without_a_pipeline_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"no model_index\.json"):
        DiTBase.load(tmp_path)


def test_class_ids_by_name_synonym_and_number():
    names = ["apple pie", "tench, Tinca tinca", "sushi"]
    assert class_ids(["Sushi", "tinca tinca", 0, "2"], names) == [2, 1, 0, 2]
    assert class_ids([0, 1, 2, "1", "2"], ["1", "2", "A"]) == [0, 1, 2, 0, 1]  # names that are numbers, and others'
    with pytest.raises(InputError, match="did you mean 'sushi'"):
        class_ids(["shushi"], names)
    with pytest.raises(InputError, match="no class 3"):
        class_ids([3], names)
