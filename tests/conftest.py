"""Fixtures that many tests share: tiny models of the hosts' real classes, made on the spot."""

import os
import subprocess
import sys
from types import SimpleNamespace

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs one process per core

import pytest
import torch
from forked_python import ForkedPython
from hypothesis import settings

# The suite tries the same examples each time; `pytest --hypothesis-profile explore` tries new ones.
settings.register_profile("same", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("same")

TINY_DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "sample_size": 8,
    "num_embeds_ada_norm": 10,
}


@pytest.fixture
def blank_figures(monkeypatch):
    """matplotlib's figures reach their files blank: in a run of a few steps, drawing them takes longer than the steps."""
    from matplotlib.figure import Figure
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    def savefig(figure, path, *, metadata, **options):
        texts = PngInfo()
        for name, text in metadata.items():
            texts.add_text(name, text)
        Image.new("RGB", (1, 1)).save(path, "png", pnginfo=texts)

    monkeypatch.setattr(Figure, "savefig", savefig)


# How an export is loaded by its own libraries alone, and what these import.
RELOADING = ["-I", "-W", "ignore"]
HOSTS = (
    "diffusers.loaders.peft",
    "diffusers.pipelines.dit.pipeline_dit",
    "peft",
    "timm",
    "transformers.models.depth_anything.modeling_depth_anything",
)


@pytest.fixture(scope="session")
def isolated():
    """A Python as the one that exports are loaded by, with the hosts imported and nothing of ours."""
    python = ForkedPython(HOSTS, RELOADING)
    yield python
    python.close()


@pytest.fixture
def forked_reloads(isolated, monkeypatch):
    """The process that loads an export is a fork, not a fresh one: in `test_export_commands` it is."""
    from onelora_vision.adapters import export

    def run(command, capture_output, text, check):
        python, *flags = command[: 1 + len(RELOADING)]
        assert (python, flags) == (sys.executable, RELOADING)
        ((code, output, errors),) = isolated.together((command[1 + len(RELOADING) :], {}))
        return subprocess.CompletedProcess(command, code, output, errors)

    monkeypatch.setattr(export, "subprocess", SimpleNamespace(run=run))


@pytest.fixture
def fresh_accelerate():
    """accelerate keeps its settings for a whole process; each test is a process of its own to it."""
    from accelerate.state import AcceleratorState, GradientState

    def reset():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    reset()
    yield
    reset()


@pytest.fixture
def stock_dit():
    """A stock diffusers DiT (2 blocks, width 32, 10 classes, learned variance) with random weights, embedders tied."""
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(**TINY_DIT).eval()
    embedder = model.transformer_blocks[0].norm1.emb.state_dict()
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(embedder)
    return model


@pytest.fixture
def dit(stock_dit):
    """`DiT` on `stock_dit`'s weights."""
    from onelora_vision.backbones.dit_network import DiT

    return DiT.from_stock(stock_dit)


@pytest.fixture(scope="session")
def dit_folder(tmp_path_factory):
    """A tiny DiT pipeline folder as the hub has them: 1000 classes, learned variance, scaling factor 0.18215."""
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(1)
    transformer = DiTTransformer2DModel(**{**TINY_DIT, "num_embeds_ada_norm": 1000})
    embedder = transformer.transformer_blocks[0].norm1.emb.state_dict()
    for block in transformer.transformer_blocks:
        block.norm1.emb.load_state_dict(embedder)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.18215,
    )
    scheduler = DDIMScheduler(clip_sample=False)
    pipeline = DiTPipeline(transformer, vae, scheduler)
    pipeline.register_to_config(id2label={str(i): f"thing {i}, thing-{i}" for i in range(1000)})
    folder = tmp_path_factory.mktemp("hub") / "tiny-dit"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sit_folder(dit_folder, tmp_path_factory):
    """`dit_folder` as a SiT, with lively weights: the same tensors, a velocity, and a time that ends at the image."""
    from onelora_vision.backbones.dit import DiTBase, save_pipeline
    from onelora_vision.backbones.dit_original import ORIGINALS

    base = DiTBase.load(dit_folder)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in base.model.parameters():  # adaLN-Zero's zero start would make every class alike
            parameter += 0.05 * torch.randn_like(parameter)
    base.scheduler = ORIGINALS["sit"].scheduler()
    folder = tmp_path_factory.mktemp("hub") / "tiny-sit"
    save_pipeline(base, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_depth_anything():
    """Makes a Depth Anything of 4 blocks, width 16, patch 4, 16 x 16 pixels with lively random weights: call it."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    def make(kind: str = "metric", max_depth: int = 10) -> DepthAnythingForDepthEstimation:
        torch.manual_seed(0)
        backbone = Dinov2Config(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=16,
            patch_size=4,
            out_indices=[1, 2, 3, 4],
            reshape_hidden_states=False,
        )
        config = DepthAnythingConfig(
            backbone_config=backbone,
            patch_size=4,
            reassemble_hidden_size=16,
            neck_hidden_sizes=[4, 8, 8, 8],
            fusion_hidden_size=8,
            head_hidden_size=4,
            depth_estimation_type=kind,
            max_depth=max_depth,
        )
        model = DepthAnythingForDepthEstimation(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:  # transformers' std of 0.02 would let no signal through so narrow a network
                torch.nn.init.normal_(parameter, std=(2 / parameter[0].numel()) ** 0.5)
        return model

    return make
