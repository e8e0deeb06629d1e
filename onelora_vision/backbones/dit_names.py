"""The names of DiT's parameters in `backbones.dit_network.DiT`, in stock diffusers and in facebookresearch/DiT.

Stock diffusers has a copy of the conditioning embedder in each block. The original, and therefore ComfyUI, joins q, k
and v.
"""

import re

import torch
from torch import Tensor

CONDITIONING = "conditioning."
LABEL_TABLE = "conditioning.class_embedder.embedding_table"
_COPY = re.compile(r"transformer_blocks\.(\d+)\.norm1\.emb\.")
_IN_BLOCK = {
    "attn1.to_qkv": "attn.qkv",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
    "norm1.linear": "adaLN_modulation.1",
}
_OUTSIDE = {
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
    "pos_embed.proj": "x_embedder.proj",
    "conditioning.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "conditioning.timestep_embedder.linear_2": "t_embedder.mlp.2",
    LABEL_TABLE: "y_embedder.embedding_table",
}
QKV = ("to_q", "to_k", "to_v")


def stock_modules(module: str, depth: int) -> list[str]:
    """Stock diffusers' modules for one of ours: separate q, k, v, and a copy of the conditioning in each block."""
    if module.endswith(".to_qkv"):
        return [module.removesuffix("to_qkv") + part for part in QKV]
    if module.startswith(CONDITIONING):
        inner = module.removeprefix(CONDITIONING)
        return [f"transformer_blocks.{block}.norm1.emb.{inner}" for block in range(depth)]
    return [module]


def own_module(stock: str) -> str:
    """Our module for a stock one. All copies of the conditioning map to our single one."""
    return _COPY.sub(CONDITIONING, stock)


def facebook_module(module: str) -> str:
    """The original's name for one of our modules, with q, k, v joined (``to_qkv``).

    Raises:
        KeyError: the original has no such module.
    """
    if module in _OUTSIDE:
        return _OUTSIDE[module]
    block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", module)
    return f"blocks.{block[1]}.{_IN_BLOCK[block[2]]}" if block else _OUTSIDE[module]


def stock_whole(whole: dict[str, dict[str, Tensor]], depth: int) -> dict[str, dict[str, Tensor]]:
    """Rename modules saved whole to stock diffusers' names. Copies do not share memory."""
    result: dict[str, dict[str, Tensor]] = {}
    for module, parts in whole.items():
        names = stock_modules(module, depth)
        is_split = module.endswith(".to_qkv")
        for number, name in enumerate(names):
            result[name] = {
                key: tensor.chunk(3)[number].clone() if is_split else tensor.clone() for key, tensor in parts.items()
            }
    return result


def pad_table(table: Tensor, base_table: Tensor) -> Tensor:
    """Pad a label table (n + 1, D) to the shape of the base's: new classes first, the null class last.

    Stock diffusers' pipeline uses the base's last row for "no class", so its guidance stays correct. The rows in
    between keep the base's values.
    """
    padded = base_table.detach().clone().to(table.dtype)
    padded[: len(table) - 1] = table[:-1]
    padded[-1] = table[-1]
    return padded


def cut_table(padded: Tensor, classes: int) -> Tensor:
    """Undo `pad_table`."""
    return torch.cat([padded[:classes], padded[-1:]])
