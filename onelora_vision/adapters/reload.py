"""Load an export with its target libraries alone and compare its outputs. Run as a script, in a separate process.

``python -I reload.py JOB.json`` prints one line of JSON. Nothing of this package is imported, so an export that loads
here also loads for users who have only PEFT, diffusers, timm, transformers or onnxruntime. The job names the target,
the base, the export, and a safetensors file with the inputs (``0.input.*``, ``1.input.*``, …) and the expected outputs
(``0.output``, …).
"""

import importlib
import json
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def load_stock_base(base: dict) -> torch.nn.Module:
    """Load the base with its host library, as on the card of an export."""
    source, options = base["source"], base["options"]
    library = importlib.import_module(base["library"])
    if not base["class"]:
        return library.create_model(source, pretrained=True, **options)
    return getattr(library, base["class"]).from_pretrained(source, **options)


def with_peft(job: dict) -> torch.nn.Module:
    from peft import PeftModel

    return PeftModel.from_pretrained(load_stock_base(job["base"]), job["export"])


def with_diffusers(job: dict) -> torch.nn.Module:
    from diffusers import DiTTransformer2DModel
    from diffusers.loaders import PeftAdapterMixin

    loader = type("DiTWithAdapters", (DiTTransformer2DModel, PeftAdapterMixin), {})
    model = loader.from_pretrained(job["base"]["source"], **job["base"]["options"])
    whole = Path(job["export"]) / "modules.safetensors"
    if whole.is_file():
        unexpected = model.load_state_dict(load_file(whole), strict=False).unexpected_keys
        assert not unexpected, f"no place for {unexpected[:3]}"
    model.load_lora_adapter(job["export"], prefix="transformer", weight_name="pytorch_lora_weights.safetensors")
    return model


def with_kohya_formula(job: dict) -> torch.nn.Module:
    """Apply a LoRA file as ComfyUI does, to the weights under the original DiT's names."""
    model = load_stock_base(job["base"])
    weights = to_facebook(model.state_dict())
    file = load_file(job["export"])
    keys = {}
    for name in weights:
        module, _, kind = name.rpartition(".")
        keys.setdefault("lora_unet_" + module.replace(".", "_"), {})[kind] = name
    used = set()
    for key, tensor in file.items():
        stem, _, part = key.partition(".")
        places = keys[stem]
        used.add(key)
        if part == "lora_up.weight":
            down, alpha = file[f"{stem}.lora_down.weight"], file[f"{stem}.alpha"].item()
            weights[places["weight"]] += (alpha / down.shape[0]) * (tensor @ down)
        elif part == "diff":
            weights[places["weight"]] += tensor
        elif part == "diff_b":
            weights[places["bias"]] += tensor
        else:
            assert part in ("lora_down.weight", "alpha"), f"unknown key {key}"
    model.load_state_dict(from_facebook(weights, model.state_dict()))
    return model


IN_BLOCK = {
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
    "norm1.linear": "adaLN_modulation.1",
}
OUTSIDE = {
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
    "pos_embed.proj": "x_embedder.proj",
}
EMBEDDER = {
    "timestep_embedder.linear_1": "t_embedder.mlp.0",
    "timestep_embedder.linear_2": "t_embedder.mlp.2",
    "class_embedder.embedding_table": "y_embedder.embedding_table",
}


def facebook_name(key: str) -> str | None:
    """The original's name for a stock parameter; None for q, k, v, which are joined there."""
    module, _, kind = key.rpartition(".")
    block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module)
    if block is None:
        return f"{OUTSIDE[module]}.{kind}"
    if block[2].startswith("norm1.emb."):
        return f"{EMBEDDER[block[2].removeprefix('norm1.emb.')]}.{kind}"
    if block[2] in ("attn1.to_q", "attn1.to_k", "attn1.to_v"):
        return None
    return f"blocks.{block[1]}.{IN_BLOCK[block[2]]}.{kind}"


def to_facebook(stock: dict) -> dict:
    weights = {}
    for key, tensor in stock.items():
        if name := facebook_name(key):
            weights[name] = tensor.clone()
        elif ".to_q." in key:
            qkv = [stock[key.replace(".to_q.", f".to_{part}.")] for part in "qkv"]
            block, kind = key.split(".")[1], key.rpartition(".")[2]
            weights[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(qkv)
    return weights


def from_facebook(weights: dict, stock: dict) -> dict:
    result = {}
    for key in stock:
        if name := facebook_name(key):
            result[key] = weights[name]
        else:
            block, kind = key.split(".")[1], key.rpartition(".")[2]
            part = "qkv".index(re.search(r"\.to_([qkv])\.", key)[1])
            result[key] = weights[f"blocks.{block}.attn.qkv.{kind}"].chunk(3)[part]
    return result


def merged(job: dict) -> torch.nn.Module:
    base = job["base"]
    if base["library"] == "diffusers":
        from diffusers import DiTPipeline

        return DiTPipeline.from_pretrained(job["export"]).transformer
    source = f"local-dir:{job['export']}" if base["library"] == "timm" else job["export"]
    return load_stock_base({**base, "source": source, "options": {}})


class OnnxGraph(torch.nn.Module):
    """An ONNX graph in onnxruntime, called like the network that it was exported from."""

    def __init__(self, file: str):
        import onnxruntime

        super().__init__()
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def forward(self, *values: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        names = [entry.name for entry in self.session.get_inputs()]
        inputs = dict(zip(names, values)) | named
        (output,) = self.session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(output)


def onnx(job: dict) -> torch.nn.Module:
    return OnnxGraph(job["export"])


TARGETS = {
    "peft-lora": with_peft,
    "peft-miss": with_peft,
    "diffusers": with_diffusers,
    "comfy": with_kohya_formula,
    "merged": merged,
    "onnx": onnx,
}


@torch.no_grad()
def main(job: dict) -> dict:
    tensors = load_file(job["tensors"])
    model = TARGETS[job["target"]](job).eval().float()
    errors = [difference(model, tensors, f"{number}.") for number in range(sum(".output" in key for key in tensors))]
    assert not any(name.split(".")[0] == "onelora_vision" for name in sys.modules), "imported onelora_vision"
    return {"error": max(errors)}


def difference(model: torch.nn.Module, tensors: dict, case: str) -> float:
    """Largest difference between the model's output and the expected one, relative to the largest expected value."""
    inputs = {key.removeprefix(f"{case}input."): value for key, value in tensors.items() if f"{case}input." in key}
    positional = [inputs.pop("x")] if "x" in inputs else []
    output = model(*positional, **inputs)
    for name in ("sample", "logits", "predicted_depth"):
        output = getattr(output, name, output)
    expected = tensors[f"{case}output"]
    return ((output - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


if __name__ == "__main__":
    print(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
