"""The commands of the recipes and of the documentation, shortened to two steps and a few samples.

Every file in ``train_scripts/configs`` is trained by, and what it leaves is used, by the commands that its page shows. What
the documentation runs on published models in addition has its steps below.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "train_scripts" / "configs"

PYTHON = (sys.executable,)
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1",
          "--mixed_precision=no", "--dynamo_backend=no")  # fmt: skip
ONELORA = (sys.executable, "-m", "onelora_vision.cli")
#: Two steps in small batches with fewer processes that load images; all else is the recipe's.
SMALL_BATCHES = ("--train_batch_size=2", "--eval_batch_size=2", "--dataloader_num_workers=2")
SHORT = ("--max_train_steps=2", *SMALL_BATCHES)
#: A forked worker keeps the weights that it was forked with, which full fine-tuning replaces: they would lie there twice.
NO_WORKERS = ("--dataloader_num_workers=0",)
#: For classifiers, whose batches are cheap and whose datasets have many classes.
MANY_PICTURES = ("--eval_batch_size=50",)
FEW_ANSWERS = ("--max_eval_samples=4", "--num_examples=2", "--max_new_tokens=8")
FEW = ("--num_inference_steps=2", "--fid_num_samples=6")
#: The recipes that a rehearsal measures, and at one scale of guidance: the others draw and measure in the same way.
MEASURED = ("food101-xl2-onelora", "food101-xl2-lora", "food101-sit-xl2-onelora")
ONE_SCALE = ("--guidance_scales=",)
NOT_MEASURED = (*ONE_SCALE, "--fid_features=none")
#: Recipes whose adapter is merged: one of each kind of weights and of each family.
MERGED = ("dit/food101-xl2-onelora", "dit/food101-xl2-dora", "dit/food101-sit-xl2-onelora", "depth/nyu_to_kitti",
          "classification/cifar10-vit-b16", "language/llama2-7b-metamath-onelora")  # fmt: skip
DEPTH_FOLDERS = {"nyu": "nyu", "kitti": "kitti", "diode_outdoor": "diode"}
INDOOR = "depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf"
DIT, VAE = "facebook/DiT-XL-2-256", "stabilityai/sd-vae-ft-ema"
LLAMA_7B, LLAMA_13B = "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf"
METAMATH = "MetaMathQA-395K.json"
VIT, DINO = "vit_base_patch16_224.augreg_in21k", "vit_large_patch14_dinov2.lvd142m"


#: timm builds a model from its name alone, so a small rehearsal takes a smaller model's name.
SMALLER = {VIT: "vit_tiny_patch16_224.augreg_in21k", DINO: "vit_small_patch14_dinov2.lvd142m"}
#: Attention heads of the small DiTs, which ``onelora convert`` cannot read off their shapes.
SMALL_HEADS = 2


def timm_name(name: str, small: bool) -> str:
    """What a command of this rehearsal calls a timm model."""
    return SMALLER[name] if small else name


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: GROUP/RECIPE/WHAT.
        words: the command line, for the folder of the rehearsal.
        needs: rows of `MODELS` and `DATA` that must be there.
        after: steps whose outputs it takes.
        makes: the file or folder that it writes.
    """

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    makes: str | None = None


def all_steps(small: bool) -> list[Step]:
    """Every command, in an order in which they can run."""
    steps = _conversions(small)
    for file in sorted(CONFIGS.rglob("*.yaml")):
        name = f"{file.parent.name}/{file.stem}"
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        steps += _RECIPES[file.parent.name](name, file, config)
    return steps + _more_of_dit(small) + _more_of_classification(small) + _more_of_depth() + _more_of_language()


def _script(task: str) -> str:
    return str(ROOT / "train_scripts" / f"train_{task}.py")


def _recipe(task: str, file: Path) -> tuple[str, ...]:
    return _script(task), f"--config={file}"


def _uses(name: str, output: str, *further: Step) -> list[Step]:
    """What can be asked of any adapter, and the task's own."""
    adapter, after = f"{output}/adapter", (f"{name}/train",)
    steps = [
        Step(f"{name}/doctor", (*ONELORA, "doctor", adapter), after=after),
        Step(f"{name}/inspect", (*ONELORA, "inspect", adapter), after=after),
    ]
    if name in MERGED:
        steps.append(_export(name, output, "merged"))
    return [*steps, *further]


def _export(name: str, output: str, to: str, *flags: str) -> Step:
    folder = f"exported/{name.replace('/', '-')}-{to}"
    words = (*ONELORA, "export", f"{output}/adapter", "--to", to, "-o", folder, *flags)
    return Step(f"{name}/export-{to}", words, after=(f"{name}/train",), makes=folder)


def _conversions(small: bool) -> list[Step]:
    """Original checkpoints to pipelines, and back."""
    heads = (f"--num_heads={SMALL_HEADS}",) if small else ()

    def convert(name: str, source: str, base: str, *flags: str) -> Step:
        words = (*ONELORA, "convert", source, base, "--vae", VAE, *flags, *heads)
        return Step(f"convert/{name}/forth", words, (source, VAE), makes=base)

    back = (*ONELORA, "convert", "base/dit-xl-2", "DiT-XL-2.safetensors")
    return [
        convert("dit", "DiT-XL-2-256x256.pt", "base/dit-xl-2"),
        Step("convert/dit/back", back, after=("convert/dit/forth",), makes="DiT-XL-2.safetensors"),
        convert("repa", "REPA-SiT-XL-2.pt", "base/repa-xl-2", "--model=repa"),
        convert("sit", "SiT-XL-2-256.pt", "base/sit-xl-2", "--model=sit"),
    ]


def _dit(name: str, file: Path, config: dict) -> list[Step]:
    base, output = config["pretrained_model_name_or_path"], config["output_dir"]
    is_local = base.startswith("base/")
    images = f"images/{file.stem}"
    # Fréchet distances of 2,048 features take minutes, whatever the network's size and method
    measured = ONE_SCALE if file.stem in MEASURED else NOT_MEASURED
    workers = NO_WORKERS if config["method"] == "full" else ()
    drawn = (*ONELORA, "sample", f"{output}/adapter", "-o", images, "--classes=sushi,waffles", "--num_images=1")
    return [
        Step(
            f"{name}/train",
            (*PYTHON, *_recipe("dit", file), "--data_dir=data", *SHORT, *workers, *FEW, *measured),
            ("food101", "inception", *(() if is_local else (base,))),
            ("convert/sit/forth",) if is_local else (),
            output,
        ),
        *_uses(name, output, Step(f"{name}/sample", (*drawn, "--steps=2"), after=(f"{name}/train",), makes=images)),
    ]


def _classification(name: str, file: Path, config: dict) -> list[Step]:
    output = config["output_dir"]
    trained = f"{output}/seed-0"  # --seeds has a folder for each
    train = (*LAUNCH, *_recipe("classification", file), "--data_dir=data", "--seeds=0", *SHORT, *MANY_PICTURES)
    predict = (*ONELORA, "predict", "--adapter", f"{trained}/adapter", "pictures", "--top=3")
    return [
        Step(f"{name}/train", train, (config["pretrained_model_name_or_path"], config["dataset_name"]), makes=output),
        *_uses(name, trained, Step(f"{name}/predict", predict, ("pictures",), (f"{name}/train",))),
    ]


def _depth(name: str, file: Path, config: dict) -> list[Step]:
    output, data = config["output_dir"], config["dataset_name"]
    train = (*LAUNCH, *_recipe("depth", file), f"--train_data_dir={DEPTH_FOLDERS[data]}", *SHORT)
    maps = f"depth/{file.stem}"
    predict = (*ONELORA, "predict", "--adapter", f"{output}/adapter", "pictures", "-o", maps)
    return [
        Step(f"{name}/train", train, (config["pretrained_model_name_or_path"], data), makes=output),
        *_uses(name, output, Step(f"{name}/predict", predict, ("pictures",), (f"{name}/train",), maps)),
    ]


def _language(name: str, file: Path, config: dict) -> list[Step]:
    output = config["output_dir"]
    train = (*PYTHON, *_recipe("language", file), f"--data_file={METAMATH}", *SHORT, *FEW_ANSWERS)
    predict = (*ONELORA, "predict", "--adapter", f"{output}/adapter", "What is 15 percent of 80?")
    return [
        Step(f"{name}/train", train, (config["pretrained_model_name_or_path"], METAMATH), makes=output),
        *_uses(name, output, Step(f"{name}/predict", predict, after=(f"{name}/train",))),
    ]


#: By folder of recipes: called with the recipe's name, its file, and what is in it.
_RECIPES = {"dit": _dit, "classification": _classification, "depth": _depth, "language": _language}


def _more_of_dit(small: bool) -> list[Step]:
    """What docs/dit.md, docs/adapters.md and docs/own-images.md do besides with published models."""
    recipe, output = CONFIGS / "dit" / "food101-xl2-onelora.yaml", "output/dit-food101-onelora"
    name, adapter = "dit/food101-xl2-onelora", "output/dit-food101-onelora/adapter"
    trained, on_base = (f"{name}/train",), ("food101", DIT)
    train = (*PYTHON, *_recipe("dit", recipe), "--data_dir=data", *FEW, *ONE_SCALE)
    sample = (*ONELORA, "sample", adapter, "--num_images=1", "--steps=2")
    own = ("--dataset_name=imagefolder", "--data_dir=my-images", "--learning_rate=1e-3", "--head_learning_rate=1e-3",
           "--lr_warmup_steps=0", "--cache_latents", "--mixed_precision=bf16")  # fmt: skip
    dino = ("--features=dinov2", "--fid_weights=download", f"--fid_timm_model={timm_name(DINO, small)}")
    on_repa = ("--pretrained_model_name_or_path=base/repa-xl-2", "--output_dir=output/repa", *own, *SHORT, *FEW)
    on_hub = (f"--pretrained_model_name_or_path={DIT}", "--output_dir=output/mine", *own, *SHORT, *FEW)
    pictures = ("my-images/ice_cream", "my-images/breakfast")
    return [
        Step(f"{name}/dry_run", (*train, "--dry_run"), on_base),
        Step(
            f"{name}/resume",
            (
                *train,
                "--max_train_steps=3",
                *SMALL_BATCHES,
                "--resume_from_checkpoint=latest",
            ),
            after=trained,
        ),
        Step(f"{name}/doctor_on_base", (*ONELORA, "doctor", adapter, "--base", DIT), on_base, trained),
        _export(name, output, "peft-miss"),
        _export(name, output, "comfy", "--dtype=fp16"),
        Step(
            f"{name}/sample_npz",
            (*sample, "-o", "many", "--classes=0,1", "--formats=npz"),
            after=trained,
            makes="many",
        ),
        Step(
            f"{name}/sample_guided_by_base",
            (*sample, "-o", "guided", "--classes=sushi", "--guidance_base", "--guidance_scale=2.5"),
            after=trained,
            makes="guided",
        ),
        Step(
            "dit/measures/compare",
            (*ONELORA, "fid", "compare", output, "output/dit-food101-lora"),
            after=(*trained, "dit/food101-xl2-lora/train"),
        ),
        Step("dit/measures/fid", (*ONELORA, "fid", *pictures), ("pictures", "inception")),
        Step("dit/measures/fd_dinov2", (*ONELORA, "fid", *pictures, *dino), ("pictures", DINO)),
        Step(
            "dit/own_images/train",
            (*PYTHON, _script("dit"), *on_hub, "--validation_steps=1"),
            ("pictures", DIT),
            makes="output/mine",
        ),
        Step(
            "dit/repa/train",
            (*PYTHON, _script("dit"), *on_repa, "--fid_features=none"),
            ("pictures",),
            ("convert/repa/forth",),
            "output/repa",
        ),
    ]


def _more_of_classification(small: bool) -> list[Step]:
    """timm's ViT: docs/classification.md, docs/own-images.md and docs/sweep.md."""
    on_timm = f"--pretrained_model_name_or_path={timm_name(VIT, small)}"
    cifar = (on_timm, "--dataset_name=cifar100", "--data_dir=data", "--validation_steps=1", "--metric_for_best_model=top1",
             "--learning_rate=1e-3", "--head_learning_rate=1e-3", "--mixed_precision=bf16", *SHORT, *MANY_PICTURES)  # fmt: skip
    own = (on_timm, "--data_dir=my-images", "--method=onelora_norms", "--learning_rate=1e-3", *SHORT, *MANY_PICTURES)
    predict = (*ONELORA, "predict", "--adapter=output/cifar/adapter", "pictures", "--json")
    tried = ("--methods=onelora,lora", "--learning_rates=1e-3", "--seeds=0", on_timm, *SHORT, *MANY_PICTURES)

    def sweep(benchmark: str, folder: str) -> Step:
        words = (*ONELORA, "sweep", "classification", f"--dataset_name={benchmark}", f"--data_dir={folder}", *tried)
        output = f"{benchmark}-sweep"
        return Step(
            f"classification/timm/{output}", (*words, f"--output_dir={output}"), (VIT, benchmark), makes=output
        )

    name = "classification/timm"
    return [
        Step(
            f"{name}/train",
            (*PYTHON, _script("classification"), *cifar, "--output_dir=output/cifar"),
            (VIT, "cifar100"),
            makes="output/cifar",
        ),
        *_uses(name, "output/cifar", Step(f"{name}/predict", predict, ("pictures",), (f"{name}/train",))),
        Step(
            "classification/own_images/train",
            (*PYTHON, _script("classification"), *own, "--output_dir=output/classes"),
            (VIT, "pictures"),
            makes="output/classes",
        ),
        sweep("vtab", "vtab-1k"),
        sweep("fgvc", "fgvc"),
    ]


def _more_of_depth() -> list[Step]:
    """NYU's .mat file (docs/depth.md), and what is lost on it by training on KITTI (docs/retention.md)."""
    train = (*PYTHON, _script("depth"), f"--pretrained_model_name_or_path={INDOOR}", *SHORT)
    mat = "--train_data_dir=nyu_mat/nyu_depth_v2_labeled.mat"
    on_nyu = ("--dataset_name=nyu", "--resolution=392x518", "--output_dir=output/nyu")
    on_kitti = ("--dataset_name=kitti", "--train_data_dir=kitti", "--resolution=350x1218", "--output_dir=output/kept")
    old = ("--retention", "--retention_dataset=nyu", "--retention_dir=nyu")
    return [
        Step("depth/nyu_mat/train", (*train, *on_nyu, mat), (INDOOR, "nyu"), makes="output/nyu"),
        Step("depth/retention/train", (*train, *on_kitti, *old), (INDOOR, "kitti", "nyu"), makes="output/kept"),
    ]


def _more_of_language() -> list[Step]:
    """Packing, and LoRA on q, k and v alone: docs/language.md."""
    recipe = CONFIGS / "language" / "llama2-7b-metamath-lora.yaml"
    train = (*PYTHON, *_recipe("language", recipe), f"--data_file={METAMATH}", *SHORT, *FEW_ANSWERS)
    more = ("--packing", "--gradient_checkpointing", "--target_modules=[qkv]_proj", "--max_length=1024",
            "--output_dir=output/packed")  # fmt: skip
    return [Step("language/packed/train", (*train, *more), (LLAMA_7B, METAMATH), makes="output/packed")]


def chosen(steps: list[Step], pattern: str) -> list[Step]:
    """The steps whose names match a pattern (``*`` for anything; else a part of the name), and those that they need."""
    from fnmatch import fnmatchcase

    by_name = {step.name: step for step in steps}
    wanted: set[str] = set()
    waiting = [step.name for step in steps if pattern in step.name or fnmatchcase(step.name, pattern)]
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting += by_name[name].after
    return [step for step in steps if step.name in wanted]
