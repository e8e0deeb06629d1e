import argparse
import math

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from onelora_vision.backbones.dit import DiTBase, save_pipeline
from onelora_vision.backbones.dit_original import (
    from_original,
    original_base,
    original_of,
    read_original,
    save_original,
    state_of,
    to_original,
)
from onelora_vision.diffusion.latents import LatentScale
from onelora_vision.errors import InputError

WIDTH, DEPTH, HEADS, PATCH, SIDE, CLASSES = 32, 2, 2, 2, 4, 5


def sines(positions: torch.Tensor, width: int) -> torch.Tensor:
    """[sin(p w_i), cos(p w_i)] with w_i = 10000^(-i / (width/2)), fp64. (T,) -> (T, width)"""
    frequencies = 1 / 10000 ** (torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


@pytest.fixture
def state():
    """A checkpoint under the original's names, with random weights and the original's positions."""
    torch.manual_seed(0)
    shapes = {
        "x_embedder.proj": (WIDTH, 4, PATCH, PATCH),
        "t_embedder.mlp.0": (WIDTH, 256),
        "t_embedder.mlp.2": (WIDTH, WIDTH),
        "final_layer.linear": (PATCH**2 * 8, WIDTH),
        "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }
    for block in range(DEPTH):
        shapes[f"blocks.{block}.attn.qkv"] = (3 * WIDTH, WIDTH)
        shapes[f"blocks.{block}.attn.proj"] = (WIDTH, WIDTH)
        shapes[f"blocks.{block}.mlp.fc1"] = (4 * WIDTH, WIDTH)
        shapes[f"blocks.{block}.mlp.fc2"] = (WIDTH, 4 * WIDTH)
        shapes[f"blocks.{block}.adaLN_modulation.1"] = (6 * WIDTH, WIDTH)
    rows, columns = (grid.flatten() for grid in torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij"))
    positions = torch.cat([sines(columns, WIDTH // 2), sines(rows, WIDTH // 2)], 1)
    state = {
        "pos_embed": positions.float()[None],
        "y_embedder.embedding_table.weight": torch.randn(CLASSES + 1, WIDTH),
    }
    for name, shape in shapes.items():
        state[f"{name}.weight"] = 0.2 * torch.randn(shape)
        state[f"{name}.bias"] = 0.2 * torch.randn(shape[0])
    return state


def original_forward(w, x, t, y):
    """DiT's forward (arXiv 2212.09748) over the original's names, with its fused qkv."""

    def linear(x, name):
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def modulate(x, shift, scale):
        return F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    angles = t[:, None].float() * frequencies[None]
    c = F.silu(linear(torch.cat([angles.cos(), angles.sin()], -1), "t_embedder.mlp.0"))
    c = linear(c, "t_embedder.mlp.2") + w["y_embedder.embedding_table.weight"][y]
    x = F.conv2d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=PATCH)
    x = x.flatten(2).transpose(1, 2) + w["pos_embed"]
    for i in range(DEPTH):
        name = f"blocks.{i}"
        parts = linear(F.silu(c), f"{name}.adaLN_modulation.1").chunk(6, 1)
        qkv = linear(modulate(x, *parts[:2]), f"{name}.attn.qkv")
        q, k, v = qkv.reshape(len(x), -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + parts[2][:, None] * linear(attended, f"{name}.attn.proj")
        hidden = F.gelu(linear(modulate(x, *parts[3:5]), f"{name}.mlp.fc1"), approximate="tanh")
        x = x + parts[5][:, None] * linear(hidden, f"{name}.mlp.fc2")
    x = linear(modulate(x, *linear(F.silu(c), "final_layer.adaLN_modulation.1").chunk(2, 1)), "final_layer.linear")
    x = x.reshape(-1, SIDE, SIDE, PATCH, PATCH, 8)
    return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, 8, SIDE * PATCH, SIDE * PATCH)


def test_the_converted_model_computes_what_the_original_does(state):
    model = from_original(state, HEADS)
    assert (model.num_classes, model.learns_variance, model.config.sample_size) == (CLASSES, True, SIDE * PATCH)
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([3, 500, 999]), torch.tensor([0, 4, 5])
    with torch.no_grad():
        output = model(x, t, y).sample
        torch.testing.assert_close(output, original_forward(state, x, t, y), rtol=1e-5, atol=1e-5)
        assert torch.equal(model.fuse_qkv()(x, t, y).sample, original_forward(state, x, t, y))


def test_there_and_back_is_exact(state):
    model = from_original(state, HEADS)
    for _ in range(2):
        again = to_original(model)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[key], value) for key, value in state.items())
        model.fuse_qkv()


@pytest.mark.parametrize("kind", ["pt", "training.pt", "safetensors"])
def test_files_are_read_and_written(state, kind, tmp_path):
    path = tmp_path / f"model.{kind}"
    if kind == "training.pt":
        whole = {"ema": state, "model": {"x": torch.zeros(1)}, "args": argparse.Namespace(model="DiT-XL/2")}
        torch.save(whole, path)
    else:
        save_original(state, path)
    found = read_original(path)
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)


def test_a_converted_checkpoint_is_a_base(state, dit_folder, tmp_path):
    save_original(state, tmp_path / "model.pt")
    base = original_base(tmp_path / "model.pt", dit_folder / "vae", ["a", "b", "c", "d", "e"], HEADS)
    save_pipeline(base, tmp_path / "pipeline")
    again = DiTBase.load(tmp_path / "pipeline")
    assert again.class_names == ["a", "b", "c", "d", "e"]
    assert all(torch.equal(value, state[key]) for key, value in to_original(again.model).items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_checkpoints_of_other_precisions_are_converted_to_fp32(state, dtype, tmp_path):
    lower = {key: value.to(dtype) for key, value in state.items()}
    torch.save(lower, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    model = from_original(read_original(tmp_path / "old.pt"), HEADS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    again = to_original(model)
    assert all(torch.equal(again[key], lower[key].float()) for key in state if key != "pos_embed")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_embed": torch.zeros(1, 5, WIDTH)}, "square grid"),
        ({"pos_embed": torch.zeros(16, WIDTH)}, "pos_embed has shape"),
        ({"pos_embed": torch.zeros(1, 16, WIDTH // 2)}, "square grid"),
        ({"pos_embed": torch.zeros(1, 16, WIDTH, dtype=torch.int64)}, "without floating-point"),
        ({"x_embedder.proj.weight": torch.zeros(WIDTH, 4)}, "x_embedder.proj.weight has shape"),
        ({"x_embedder.proj.weight": torch.zeros(WIDTH, 4, 0, 0)}, "x_embedder.proj.weight has shape"),
        ({"final_layer.linear.weight": torch.zeros(3, 1)}, "size mismatch"),
        ({"final_layer.linear.weight": torch.zeros(WIDTH)}, "final_layer.linear.weight has shape"),
        ({"y_embedder.embedding_table.weight": torch.zeros(1, WIDTH)}, "has one row"),
        ({"blocks.0.attn.proj.bias": torch.zeros(WIDTH, dtype=torch.int64)}, "blocks.0.attn.proj.bias without floating-point"),
        ({f"blocks.{k}.attn.qkv.weight": torch.zeros(1) for k in range(1000)}, "1,000 blocks"),
        ({"blocks.0.attn.proj.bias": torch.full((WIDTH,), float("nan"))}, "blocks.0.attn.proj.bias holds 32 of 32"),
        ({"blocks.0.attn.proj.bias": torch.zeros(1).expand(10**11)}, "larger .100000000000. than its data in the file"),
    ],
)  # fmt: skip
def test_hostile_checkpoints_end_in_one_line(state, change, message, tmp_path):
    torch.save({**state, **change}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=message) as caught:
        from_original(read_original(tmp_path / "x.pt"), HEADS)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_what_cannot_be_converted_is_named(state, dit_folder, tmp_path):
    with pytest.raises(InputError, match=r"2 blocks of width 32.*--num_heads"):
        from_original(state)
    with pytest.raises(InputError, match="does not divide"):
        from_original(state, 3)
    for heads in (0, -2):
        with pytest.raises(InputError, match="whole number from 1"):
            from_original(state, heads)
    with pytest.raises(InputError, match=r"blocks\.1\.attn\.proj\.bias missing"):
        from_original({key: value for key, value in state.items() if key != "blocks.1.attn.proj.bias"}, HEADS)
    with pytest.raises(InputError, match="extra missing or unknown"):
        from_original({**state, "extra": torch.zeros(1)}, HEADS)
    with pytest.raises(InputError, match="size mismatch"):
        from_original({**state, "t_embedder.mlp.2.bias": torch.zeros(3)}, HEADS)
    with pytest.raises(InputError, match="pos_embed is not"):
        from_original({**state, "pos_embed": state["pos_embed"] + 0.01}, HEADS)
    torch.save({"a": print}, tmp_path / "evil.pt")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "empty.pt").touch()
    for name, message in {
        "evil.pt": "cannot be read",
        "other.safetensors": "not an original DiT",
        "empty.pt": "cannot be read",
        "gone.pt": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=f"{name}.*{message}"):
            read_original(tmp_path / name)
    with pytest.raises(InputError, match="an original checkpoint is named"):
        save_original(state, tmp_path / "model.bin")
    save_original(state, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no autoencoder there"):
        original_base(tmp_path / "model.safetensors", tmp_path, None, HEADS)
    with pytest.raises(InputError, match="2 class names for the 5 classes"):
        original_base(tmp_path / "model.safetensors", dit_folder / "vae", ["a", "b"], HEADS)


def without_variance(state):
    """The last layer cut to the channels of the velocity, as REPA's network has it."""
    cut = {
        key: value.unflatten(0, (PATCH**2, 8))[:, :4].flatten(0, 1)
        for key, value in state.items()
        if "r.linear" in key
    }
    return {**state, **cut}


@pytest.mark.parametrize(("original", "data_at", "channels"), [("sit", 1, 8), ("repa", 0, 4)])
def test_sit_and_repa_are_bases_that_go_back_exactly(state, dit_folder, tmp_path, original, data_at, channels):
    published = without_variance(state) if original == "repa" else state
    trained = {**published, "projectors.0.0.weight": torch.zeros(3, WIDTH)} if original == "repa" else published
    whole = {
        "ema": trained,
        "model": {"x": torch.zeros(1)},
        "opt": {},
        "args": argparse.Namespace(cfg=0.1),
        "steps": 3,
    }
    torch.save(whole, tmp_path / "0400000.pt")
    base = original_base(
        tmp_path / "0400000.pt", dit_folder / "vae", None, HEADS, None if original == "repa" else "sit"
    )
    save_pipeline(base, tmp_path / "pipeline")
    again = DiTBase.load(tmp_path / "pipeline")
    assert (again.objective.name, again.objective.data_at, again.objective.scale) == ("velocity", data_at, 1)
    assert again.model.out_channels == channels
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 0.4, 1.0]), torch.tensor([0, 4, 5])
    if original == "sit":  # t is not scaled before its sines and cosines
        with torch.no_grad():
            torch.testing.assert_close(
                again.model(x, t, y).sample, original_forward(state, x, t, y), rtol=1e-5, atol=1e-5
            )
    name, back = state_of(again)
    assert name == original and back.keys() == published.keys()
    assert all(torch.equal(back[key], value) for key, value in published.items())


def test_a_checkpoint_with_nothing_but_the_plain_weights_is_read(state, tmp_path):
    torch.save({"model": state, "opt": {}}, tmp_path / "x.pt")
    assert read_original(tmp_path / "x.pt").keys() == state.keys()


def test_the_statistics_of_repa_e_scale_its_latents(state, dit_folder, tmp_path):
    mean, variance = torch.tensor([0.1, -0.2, 0.3, 1.5]), torch.tensor([4.0, 0.3, 30.0, 1.7])
    statistics = {"bn.running_mean": mean, "bn.running_var": variance, "bn.num_batches_tracked": torch.tensor(7)}
    torch.save({"ema": {**state, **statistics}}, tmp_path / "repae.pt")
    save_pipeline(original_base(tmp_path / "repae.pt", dit_folder / "vae", None, HEADS), tmp_path / "pipeline")
    base = DiTBase.load(tmp_path / "pipeline")
    z = torch.randn(2, 4, 3, 3)
    shaped = [v.reshape(4, 1, 1) for v in (mean, variance)]
    torch.testing.assert_close(LatentScale.of(base.vae).normalize(z), (z - shaped[0]) * shaped[1].rsqrt())
    name, back = state_of(base)
    assert name == "repa" and back["bn.running_mean"].equal(mean) and back["bn.running_var"].equal(variance)
    for change, message in {
        ("bn.running_var", torch.ones(3)): "not of 4 channels",
        ("bn.running_var", torch.zeros(4)): "not above 0",
        ("bn.running_mean", torch.zeros(4, dtype=torch.int64)): "not of 4 channels",
    }.items():
        torch.save({"ema": {**state, **statistics, **dict([change])}}, tmp_path / "bad.pt")
        with pytest.raises(InputError, match=message):
            original_base(tmp_path / "bad.pt", dit_folder / "vae", None, HEADS)


def test_whose_a_checkpoint_is_is_said_or_seen_or_asked_for(state, dit_folder, tmp_path):
    assert original_of("DiT-XL-2-256x256.pt", state) == original_of("positions.pt", state) == "dit"
    assert original_of("x.pt", {**state, "projectors.0.0.bias": torch.zeros(1)}) == "repa"
    assert original_of("SiT-XL-2-256.pt", state, "sit") == "sit"
    for name in ("SiT-XL-2-256x256.pt", "my_repa-400k.pt", "sit.pt"):
        with pytest.raises(InputError, match=f"{name}: the tensors of DiT, SiT and REPA are the same.*--model"):
            original_of(name, state)
    with pytest.raises(InputError, match="only REPA's checkpoints have"):
        original_of("x.pt", {**state, "bn.running_mean": torch.zeros(4)}, "dit")
    for title, name in {"DiT": "dit", "SiT": "sit", "REPA": "repa"}.items():
        save_original(state, tmp_path / "sit.safetensors", title=title, overwrite=True)
        assert original_of(tmp_path / "sit.safetensors", state) == name
    base = original_base(tmp_path / "sit.safetensors", dit_folder / "vae", None, HEADS)
    base.scheduler.register_to_config(num_train_timesteps=1000)
    with pytest.raises(InputError, match="times 1000; the time of SiT and REPA is from 0 to 1"):
        state_of(base)


def test_an_autoencoder_of_other_latents_is_refused(state, tmp_path):
    from diffusers import AutoencoderKL

    AutoencoderKL(latent_channels=2, block_out_channels=(4,), norm_num_groups=2).save_pretrained(tmp_path / "vae")
    save_original(state, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"its latents have 2 channels, but .*x\.pt needs 4"):
        original_base(tmp_path / "x.pt", tmp_path / "vae", None, HEADS)


def test_imagenets_names_go_with_a_thousand_classes():
    from onelora_vision.backbones.dit_original import _default_names

    assert len(set(_default_names(1000))) > 990 and "golden retriever" in _default_names(1000)[207]
    assert _default_names(3) == ["0", "1", "2"]
