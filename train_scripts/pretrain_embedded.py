"""Make the small bases in onelora_vision/embedded: ``python train_scripts/pretrain_embedded.py TARGET``.

Targets: vae, features, dit and sit (need vae), depth, vit, language. Two CPU cores take minutes, about 35 for dit. All
images and random numbers depend only on the seed and the step. Matrix products run in bfloat16 if the CPU supports it;
weights are kept in fp32 and saved in fp16.
"""

import math
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from onelora_vision import embedded
from onelora_vision.data.stream import collate
from onelora_vision.data.synthetic.arithmetic import Problem, counted_story, plain_sum, retold_story
from onelora_vision.data.synthetic.digits import INK, PAPER, HandwrittenDigits, jitter
from onelora_vision.data.synthetic.glyphs import CLASS_NAMES, FONTS, font_numbers, paint, random_colors, render_glyphs
from onelora_vision.data.text.prompts import METAMATH, QUERY, prompt_of
from onelora_vision.data.text.rows import Row
from onelora_vision.errors import InputError
from onelora_vision.metrics.answers import same_number
from onelora_vision.metrics.classifier import GlyphClassifier
from onelora_vision.runtime.command import Parser, exits_cleanly
from onelora_vision.runtime.progress import progress
from onelora_vision.seeding import mix, seed_all
from onelora_vision.storage.files import atomic_file, write_json
from onelora_vision.training.pretraining import fit


def glyph_batch(seed: int, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Glyphs of random classes, (size, 3, 32, 32) in [0, 1], and their labels."""
    labels = torch.randint(len(CLASS_NAMES), (size,), generator=torch.Generator().manual_seed(mix(seed, step)))
    return render_glyphs(labels, [mix(seed, step, i) for i in range(size)]), labels


def psnr(images: torch.Tensor, others: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1], from the mean squared error over all of them."""
    return -10 * math.log10(F.mse_loss(images, others).item())


# ---------------------------------------------------------------------------------------------------------------- vae


def pretrain_vae(output: Path, steps: int | None, seed: int) -> None:
    """An AutoencoderKL with 4 x 8 x 8 latents of unit variance, trained on printed glyphs only."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )

    def loss_at(step: int) -> torch.Tensor:
        images = glyph_batch(seed, step, 32)[0] * 2 - 1
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample(torch.Generator().manual_seed(mix(seed, step, -1)))).sample.float()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return F.mse_loss(decoded, images) + 0.3 * F.l1_loss(decoded, images) + 2e-4 * kl

    fit(vae, loss_at, steps or 3600, learning_rate=2e-3)
    vae = vae.half().float().eval()  # evaluated as it will be shipped
    with torch.no_grad():
        glyphs = glyph_batch(mix(seed, 1), 0, 1000)[0]
        latents = vae.encode(glyphs * 2 - 1).latent_dist.mode()
        vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
        handwriting = HandwrittenDigits("validation").images()
        for name, images in (("printed", glyphs), ("handwriting", handwriting)):
            decoded = vae(images * 2 - 1).sample / 2 + 0.5
            print(f"PSNR {name}: {psnr(images, decoded.clamp(0, 1)):.2f} dB")
    print(
        f"latents: scale {vae.config.scaling_factor}, mean {latents.mean((0, 2, 3)).tolist()}, std {latents.std((0, 2, 3)).tolist()}"
    )
    vae.half().save_pretrained(output / "dit" / "vae")


# ----------------------------------------------------------------------------------------------------------- features


def pretrain_features(output: Path, steps: int | None, seed: int, start_from_shipped: bool = False) -> None:
    """The classifier of printed glyphs and of the handwriting's training split, in its own and in random colours.

    A second output, not saved, predicts the font (or handwriting) and the two colours. Trained on the class alone, the
    features would ignore the style, and so would a Fréchet distance computed from them. The shipped classifier was
    first trained with scikit-learn's 8 x 8 digits, then continued on the present ones: 450 steps with seed 0 and 300
    with seed 1, each with ``--start_from_shipped``.
    """
    model = GlyphClassifier.load(embedded.FEATURES).train() if start_from_shipped else GlyphClassifier(CLASS_NAMES)
    style = nn.Linear(model.head.in_features, FONTS + 1 + 6)
    split = HandwrittenDigits("train")

    def loss_at(step: int, half: int = 64) -> torch.Tensor:
        printed_seeds, seeds = ([mix(seed, step, part, i) for i in range(half)] for part in (0, 1))
        draw = torch.Generator().manual_seed(mix(seed, step))
        labels = torch.randint(len(CLASS_NAMES), (half,), generator=draw)
        chosen = torch.randint(len(split), (half,), generator=draw)
        own = torch.arange(half)[:, None] < half // 2  # half of the handwriting is black on white
        ink, paper = (torch.where(own, c, r) for c, r in zip((INK, PAPER), random_colors(seeds)))
        written = paint(jitter(split.masks[chosen], seeds), ink, paper)
        features, logits = model(torch.cat([render_glyphs(labels, printed_seeds), written]))
        seen = style(features).float()
        fonts = torch.cat([font_numbers(printed_seeds), torch.full((half,), FONTS)])
        colors = torch.cat([torch.cat(random_colors(printed_seeds), 1), torch.cat([ink, paper], 1)])
        # class i of the handwriting is class i of the glyphs: both begin with the digits
        classes = torch.cat([labels, split.labels[chosen]])
        return (
            F.cross_entropy(logits.float(), classes, label_smoothing=0.05)
            + 0.2 * F.cross_entropy(seen[:, :-6], fonts)
            + 5 * F.mse_loss(seen[:, -6:], colors)
        )

    fit(nn.ModuleList([model, style]), loss_at, steps or 2000, learning_rate=2e-3, weight_decay=0.02)
    model = model.half().float().eval()
    accuracy = {}
    with torch.no_grad():
        for name in ("validation", "test"):
            data = HandwrittenDigits(name)
            right = model(data.images())[1][:, :10].argmax(1) == data.labels
            accuracy[f"handwriting_{name}_accuracy"] = round(right.float().mean().item(), 4)
        glyphs, labels = glyph_batch(mix(seed, 1), 0, 2000)
        right = model(glyphs)[1].argmax(1) == labels
        accuracy["printed_accuracy"] = round(right.float().mean().item(), 4)
    print(accuracy)
    data = "printed glyphs; the handwriting's train split, its validation and test splits never seen"
    model.save(output / "features", training_data=data, trained_for="class, font, ink and paper", **accuracy)


# ---------------------------------------------------------------------------------------------------------------- dit


def pretrain_dit(output: Path, steps: int | None, seed: int) -> None:
    """A class-conditional DiT of printed glyphs (epsilon prediction, linear schedule of 1,000 steps)."""
    from diffusers import DDIMScheduler

    vae = load_vae(output)
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=False)
    glyphs = LatentGlyphs(vae, seed, count=80_000)
    model = new_dit(num_layers=6, attention_head_dim=32)

    def loss_at(step: int) -> torch.Tensor:
        latents, noise, shares, labels = glyphs.batch(step, model.null_class)
        times = (shares * 1000).long()
        predicted = model(scheduler.add_noise(latents, noise, times), times, labels).sample
        return F.mse_loss(predicted.float(), noise)

    checkpoint = output / "dit-training.pt"
    average = fit(model, loss_at, steps or 14_000, learning_rate=1.2e-3, ema_decay=0.999, checkpoint=checkpoint)
    save_pipeline_of_glyphs(average, vae, scheduler, output / "dit")  # which already contains its autoencoder
    checkpoint.unlink(missing_ok=True)


def load_vae(output: Path) -> nn.Module:
    """The autoencoder made by the target vae, in fp32."""
    from diffusers import AutoencoderKL

    folder = output / "dit" / "vae"
    if not folder.is_dir():
        raise InputError(f"{folder}: no autoencoder there; run the target vae first")
    return AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()


def save_pipeline_of_glyphs(model: nn.Module, vae: nn.Module, scheduler, folder: Path) -> None:
    """Write a pipeline that generates glyphs, in fp16."""
    from diffusers import DiTPipeline

    pipeline = DiTPipeline(model.eval().to_stock().half(), vae.half(), scheduler)
    pipeline.register_to_config(id2label=dict(enumerate(CLASS_NAMES)))
    pipeline.save_pretrained(folder)


def pretrain_sit(output: Path, steps: int | None, seed: int) -> None:
    """A class-conditional SiT of printed glyphs: the velocity of a straight line, with SiT's time; about 10 minutes.

    To limit the package's size, it is smaller than the DiT, its weights have the 8 significant bits of bfloat16, and it
    uses the DiT's autoencoder.
    """
    from onelora_vision.backbones.dit_original import ORIGINALS
    from onelora_vision.diffusion.objective import objective_of

    vae = load_vae(output)
    scheduler = ORIGINALS["sit"].scheduler()
    flow = objective_of({"_class_name": type(scheduler).__name__, **scheduler.config})
    glyphs = LatentGlyphs(vae, seed, count=20_000)
    model = new_dit(num_layers=4, attention_head_dim=16)

    def loss_at(step: int) -> torch.Tensor:
        latents, noise, shares, labels = glyphs.batch(step, model.null_class)
        t = flow.times(shares)
        noisy = flow.noised(latents, noise, t)
        output = model(noisy, flow.timestep(t), labels).sample
        return flow.losses(output, latents, noisy, noise, t)["mse"].mean()

    checkpoint = output / "sit-training.pt"
    average = fit(model, loss_at, steps or 10_000, learning_rate=2e-3, ema_decay=0.999, checkpoint=checkpoint)
    for parameter in average.parameters():
        parameter.data = parameter.data.bfloat16().float()
    save_pipeline_of_glyphs(average, vae, scheduler, output / "sit")
    shutil.rmtree(output / "sit" / "vae")  # `embedded.autoencoder_of` finds the shared one
    checkpoint.unlink(missing_ok=True)


class LatentGlyphs:
    """Many glyphs as an autoencoder's latents, stored as fp16, for drawing batches."""

    @torch.no_grad()
    def __init__(self, vae: nn.Module, seed: int, count: int):
        self.seed, means, stds, labels = seed, [], [], []
        for part in progress(range(count // 1000), count // 1000, desc="encoding glyphs", unit="part"):
            images, classes = glyph_batch(mix(seed, 2), part, 1000)
            with torch.autocast("cpu", torch.bfloat16):
                posterior = vae.encode(images * 2 - 1).latent_dist
            means.append((posterior.mean * vae.config.scaling_factor).half())
            stds.append((posterior.std * vae.config.scaling_factor).half())
            labels.append(classes)
        self.means, self.stds, self.labels = torch.cat(means), torch.cat(stds), torch.cat(labels)

    def batch(self, step: int, null_class: int, size: int = 128) -> tuple[torch.Tensor, ...]:
        """Latents and noise (size, 4, 8, 8), fractions of the noise schedule in [0, 1), and labels, a tenth dropped.

        There is one fraction in each of ``size`` equal intervals: the same distribution as independent draws, with less
        variance.
        """
        draw = torch.Generator().manual_seed(mix(self.seed, step))
        chosen = torch.randint(len(self.labels), (size,), generator=draw)
        noise = torch.randn(size, 4, 8, 8, generator=draw)
        latents = self.means[chosen].float() + self.stds[chosen].float() * torch.randn(noise.shape, generator=draw)
        shares = (torch.arange(size) + torch.rand(size, generator=draw)) / size
        dropped = torch.rand(size, generator=draw) < 0.1
        return latents, noise, shares, self.labels[chosen].where(~dropped, null_class)


def new_dit(num_layers: int, attention_head_dim: int) -> nn.Module:
    """A newly initialised DiT of glyphs on latents (4, 8, 8)."""
    from onelora_vision.backbones.dit_network import DiT

    model = DiT(
        num_attention_heads=4,
        attention_head_dim=attention_head_dim,
        in_channels=4,
        out_channels=4,
        num_layers=num_layers,
        patch_size=2,
        sample_size=8,
        num_embeds_ada_norm=len(CLASS_NAMES),
    )
    initialize_dit(model)
    model.fuse_qkv()
    return model


def initialize_dit(model: nn.Module) -> None:
    """The original initialisation (arXiv 2212.09748, section 3.2): every block is the identity, the output is zero.

    The label table keeps N(0, 1): with the original's 0.02, a small model takes long to learn the difference between
    classes.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            zero = name.endswith("norm1.linear") or name.startswith("proj_out")
            nn.init.zeros_(module.weight) if zero else nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


# -------------------------------------------------------------------------------------------------------------- depth


def pretrain_depth(output: Path, steps: int | None, seed: int) -> None:
    """A metric Depth Anything for rendered rooms up to 10 m, with SiLog plus gradient matching, which sharpens edges.

    About 50 minutes on one free core.
    """
    from onelora_vision.backbones.depth_anything import DepthAnythingBase, small_depth_anything
    from onelora_vision.metrics.depth import depth_metrics
    from onelora_vision.tasks.depth_losses import gradient_matching, silog

    model = small_depth_anything(max_depth=10).to(memory_format=torch.channels_last)
    _spread_norms(model)
    base = DepthAnythingBase(model=model)
    steps = steps or 9000
    images, depth, valid = rooms(seed, min(16_000, 32 * steps))

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(mix(seed, step))
        chosen = torch.randint(len(images), (32,), generator=generator)
        mirrored = torch.rand(32, generator=generator) < 0.5
        tint = (
            0.75
            + 0.5 * torch.rand(32, 1, 1, 1, generator=generator)
            + 0.1 * torch.randn(32, 3, 1, 1, generator=generator)
        )
        batch = [values[chosen] for values in (images, depth, valid)]
        x, y, known = (torch.where(_shaped(mirrored, v), v.flip(-1), v) for v in batch)
        predicted = base.depth((x / 255 * tint).clamp(0, 1)).float()
        return silog(predicted, y, known) + 0.5 * gradient_matching(predicted, y, known)

    fit(model, loss_at, steps, learning_rate=1e-3, weight_decay=0.02)
    model = model.half().float().eval()
    images, depth, valid = rooms(mix(seed, 1), 500)
    with torch.no_grad():
        predicted = torch.cat([base.depth(part / 255) for part in images.split(100)])
    print({name: round(values.mean().item(), 4) for name, values in depth_metrics(predicted, depth, valid).items()})
    model.half().save_pretrained(output / "depth")


def rooms(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rendered rooms: images (count, 3, 64, 64) uint8, depth (count, 64, 64) in metres, valid (count, 64, 64)."""
    from onelora_vision.data.synthetic.scenes import render_scene

    scenes = [render_scene("rooms", mix(seed, 2, i)) for i in progress(range(count), count, desc="rooms", unit="room")]
    images, depth, valid = (torch.stack([torch.from_numpy(part) for part in parts]) for parts in zip(*scenes))
    return images.permute(0, 3, 1, 2), depth, valid


def _spread_norms(model: nn.Module) -> None:
    """Initialise the encoder's norms with scales and shifts that differ between channels, as after long pre-training.

    At scale 1 and shift 0 a LayerNorm's output sums to zero, so an adapter on the feature sum would see nothing; a
    short pre-training hardly changes the scales.
    """
    generator = torch.Generator().manual_seed(0)
    for module in model.backbone.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.4, 1.6, generator=generator)
            nn.init.normal_(module.bias, 0.0, 0.2, generator=generator)


def _shaped(mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A mask (B,) reshaped to broadcast against ``like`` (B, …)."""
    return mask.view(-1, *[1] * (like.ndim - 1))


# ---------------------------------------------------------------------------------------------------------------- vit


VIT_SIZES = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3}


def pretrain_vit(output: Path, steps: int | None, seed: int) -> None:
    """A timm VisionTransformer that classifies the 36 printed characters; about 15 minutes on one free core."""
    import timm

    # timm's default initialisation (std 0.02) is small for 96 channels, with a long first plateau; jax's is Xavier
    model = timm.create_model("vit_tiny_patch16_224", num_classes=36, weight_init="jax", **VIT_SIZES)

    def loss_at(step: int) -> torch.Tensor:
        images, labels = glyph_batch(seed, step, 64)
        return F.cross_entropy(model(images * 2 - 1).float(), labels, label_smoothing=0.05)

    fit(model, loss_at, steps or 3600, learning_rate=2e-3, weight_decay=0.05)
    model = model.half().float().eval()
    with torch.no_grad():
        glyphs, labels = glyph_batch(mix(seed, 1), 0, 2000)
        right = {"printed": model(glyphs * 2 - 1).argmax(1) == labels}
        written = HandwrittenDigits("validation")
        right["handwriting"] = model(written.images() * 2 - 1)[:, :10].argmax(1) == written.labels
    print({name: round(hits.float().mean().item(), 4) for name, hits in right.items()})
    save_timm_folder(model, output / "vit")


def save_timm_folder(model: nn.Module, folder: Path) -> None:
    """Write the weights in fp16, and the config.json from which timm builds the model and its preprocessing."""
    pretrained = {
        "input_size": [3, 32, 32],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "num_classes": 36,
        "custom_load": False,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "label_names": CLASS_NAMES,
    }
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 36, "num_features": 96}
    write_json(folder / "config.json", {**config, "model_args": VIT_SIZES, "pretrained_cfg": pretrained})
    with atomic_file(folder / "model.safetensors") as temporary:
        weights = {name: value.half() for name, value in model.state_dict().items()}
        save_file(weights, temporary, metadata={"format": "pt"})


# ----------------------------------------------------------------------------------------------------------- language


VOCABULARY = 640  # upper bound: the problems have fewer words
JUDGED = 200  # problems of each kind, after training


def pretrain_language(output: Path, steps: int | None, seed: int) -> None:
    """A LLaMA with 376,512 parameters that does plain sums and retells stories; about 8 minutes on a busy core.

    It never sees a story that requires counting, which is the embedded job.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from onelora_vision.backbones.language import LanguageBase
    from onelora_vision.data.text.dataset import TextDataset
    from onelora_vision.tasks.language import answer_logits

    tokenizer = small_tokenizer(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)

    def loss_at(step: int, size: int = 64) -> torch.Tensor:
        problems = [pretraining_problem(mix(seed, step, i)) for i in range(size)]
        rows = [Row(*problem) for problem in problems]
        batch = collate(TextDataset.of(rows, tokenizer, METAMATH, 512).__getitems__(range(size)))
        return F.cross_entropy(*answer_logits(model, batch))

    fit(model, loss_at, steps or 2400, learning_rate=4e-3, weight_decay=0.05)
    base = LanguageBase(model=model.half().float().eval(), tokenizer=tokenizer)
    for name, make in (("sums", plain_sum), ("retold stories", retold_story), ("counted stories", counted_story)):
        problems = [make(mix(seed, 1, i)) for i in range(JUDGED)]
        prompts = [prompt_of(problem.query, METAMATH) for problem in problems]
        answers = base.complete(prompts, max_new_tokens=32)
        right = [same_number(answer, problem.response) for answer, problem in zip(answers, problems)]
        print(f"exact match of {name}: {sum(right) / len(right):.3f}")
    model.half().save_pretrained(output / "language")
    tokenizer.save_pretrained(output / "language")


def pretraining_problem(seed: int) -> Problem:
    """A plain sum or, for one in four, a story with a question whose answer is in the story."""
    return retold_story(seed) if seed % 4 == 0 else plain_sum(seed)


def small_tokenizer(seed: int):
    """A byte-level BPE with one token per word of the problems and per digit, and two for MetaMath's prompt."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = (part for i in range(4000) for part in retold_story(mix(seed, i)) + plain_sum(mix(seed, i)))
    specials = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    before, _, after = METAMATH.partition(QUERY)
    tokenizer.add_tokens([AddedToken(part, normalized=False) for part in (before, after)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=512
    )


TARGETS = {
    "vae": pretrain_vae,
    "features": pretrain_features,
    "dit": pretrain_dit,
    "sit": pretrain_sit,
    "depth": pretrain_depth,
    "vit": pretrain_vit,
    "language": pretrain_language,
}


@exits_cleanly
def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--output_dir", type=Path, default=embedded.FOLDER)
    parser.add_argument("--steps", type=int, default=None, help="default: as for the shipped weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--start_from_shipped", action="store_true", help="features: continue from the shipped weights"
    )
    arguments = parser.parse_args()
    seed_all(arguments.seed)
    options = {"start_from_shipped": True} if arguments.start_from_shipped else {}
    if options and arguments.target != "features":
        raise InputError(f"--start_from_shipped has no effect on the target {arguments.target}: leave it out")
    TARGETS[arguments.target](arguments.output_dir, arguments.steps, arguments.seed, **options)


if __name__ == "__main__":
    main()
