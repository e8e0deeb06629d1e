"""DiT written down once more from its paper (arXiv 2212.09748, figure 3 and section 3.2), in plain torch operations.

The tests hold `onelora_vision.backbones.dit_network.DiT` to it. Weights are read from a stock diffusers state dict.
"""

import math

import torch
from torch.nn import functional as F


def timestep_features(t: torch.Tensor, width: int = 256) -> torch.Tensor:
    """[cos(t w_i), sin(t w_i)] with w_i = 10000^(-i / (width/2)), i = 0 … width/2 - 1. (N,) -> (N, width)"""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angles = t[:, None].float() * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ReferenceDiT:
    """The network as a function of a stock state dict ``w``; heads as given, patch 2, learned variance or not."""

    def __init__(self, w: dict, heads: int, depth: int, out_channels: int):
        self.w, self.heads, self.depth, self.out_channels = w, heads, depth, out_channels

    def linear(self, x, name):
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def __call__(self, latents, t, labels):
        x = F.conv2d(latents, self.w["pos_embed.proj.weight"], self.w["pos_embed.proj.bias"], stride=2)
        side = x.shape[-1]
        x = x.flatten(2).transpose(1, 2) + self.w["positions"]
        emb = "transformer_blocks.0.norm1.emb"
        c = self.linear(timestep_features(t), f"{emb}.timestep_embedder.linear_1")
        c = self.linear(F.silu(c), f"{emb}.timestep_embedder.linear_2")
        c = c + self.w[f"{emb}.class_embedder.embedding_table.weight"][labels]
        for i in range(self.depth):
            x = self.block(x, c, f"transformer_blocks.{i}")
        shift, scale = self.linear(F.silu(c), "proj_out_1").chunk(2, dim=1)
        x = self.modulate(x, shift, scale)
        x = self.linear(x, "proj_out_2").reshape(-1, side, side, 2, 2, self.out_channels)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, self.out_channels, 2 * side, 2 * side)

    def modulate(self, x, shift, scale):
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    def block(self, x, c, name):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.linear(F.silu(c), f"{name}.norm1.linear").chunk(6, 1)
        x = gate_a[:, None] * self.attention(self.modulate(x, shift_a, scale_a), f"{name}.attn1") + x
        h = self.linear(self.modulate(x, shift_m, scale_m), f"{name}.ff.net.0.proj")
        return gate_m[:, None] * self.linear(F.gelu(h, approximate="tanh"), f"{name}.ff.net.2") + x

    def attention(self, x, name):
        n, tokens, width = x.shape
        q, k, v = (self.linear(x, f"{name}.to_{p}").reshape(n, tokens, self.heads, -1).transpose(1, 2) for p in "qkv")
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        return self.linear(out, f"{name}.to_out.0")
