"""Class-conditional DiT (Peebles & Xie, arXiv 2212.09748) based on diffusers' classes, with the original's mathematics.

diffusers' ``DiTTransformer2DModel`` has exactly the same weights, but differs from the original DiT in four ways that
matter for fine-tuning. `DiT` fixes them:

* Every block has and evaluates its own copy of the conditioning embedder (timestep MLP and label table). Here, the
  blocks share one embedder, evaluated once per forward pass.
* In training mode, every copy draws its own label dropout. Here, the embedder never drops labels: the training task
  replaces them by the null class, with one draw per sample.
* The timestep frequencies are spaced with ``downscale_freq_shift=1``; the original uses 0.
* The second norm of each block takes ``norm_eps`` from the config (1e-5); the original uses 1e-6.

The last two can be reverted with ``stock_numerics=True`` for comparison.
"""

import copy
import functools
import inspect
from collections.abc import Sequence

import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.normalization import AdaLayerNormZero
from torch import nn
from torch.nn import functional as F

from onelora_vision.backbones.class_names import Matches, match_classes
from onelora_vision.backbones.fuse import join_linears, split_linear
from onelora_vision.errors import InputError

ORIGINAL_NORM_EPS = 1e-6


class SharedAdaLayerNormZero(AdaLayerNormZero):
    """adaLN-Zero modulation that receives the conditioning vector instead of computing it from its own embedder.

    diffusers' block passes its ``timestep`` argument on to this layer unchanged, so that argument carries the
    conditioning (N, D). The block itself, and gradient checkpointing around it, remain those of diffusers.
    """

    def __init__(self, stock: AdaLayerNormZero):
        nn.Module.__init__(self)
        self.emb = None
        self.silu, self.linear, self.norm = stock.silu, stock.linear, stock.norm

    def forward(self, x: torch.Tensor, conditioning: torch.Tensor, class_labels=None, hidden_dtype=None):
        return super().forward(x, emb=conditioning)


class DiT(DiTTransformer2DModel):
    """diffusers' DiT with one shared conditioning embedder, ``self.conditioning``, and the original's numerics.

    Inputs are those of the parent: latents (N, C, H, W), timesteps (N,) or a scalar, and class labels (N,), where
    `null_class` means "no class". The output has 2C channels if the variance is learned.
    """

    # wraps() copies the parent's signature, from which diffusers reads the names of the config's fields.
    @functools.wraps(DiTTransformer2DModel.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._share_conditioning()

    @classmethod
    def from_stock(cls, stock: DiTTransformer2DModel, *, stock_numerics: bool = False) -> "DiT":
        """Take over the modules of diffusers' model, which cannot be used afterwards, and share one embedder.

        Raises:
            InputError: the copies of the conditioning embedder differ, so one cannot replace them all.
        """
        _check_same_embedders(stock)
        fields = inspect.signature(cls.__init__).parameters  # configs of old pipelines have further ones
        with torch.device("meta"):
            model = cls.from_config({name: value for name, value in stock.config.items() if name in fields})
        for name, child in stock.named_children():
            setattr(model, name, child)
        model._share_conditioning()
        model.set_numerics(stock=stock_numerics)
        model.train(stock.training)
        return model

    def to_stock(self) -> DiTTransformer2DModel:
        """Copy to diffusers' own class, with an embedder in each block, ready for ``save_pretrained``."""
        config = {**self.config, "norm_eps": self.transformer_blocks[0].norm3.eps}
        with torch.device("meta"):
            stock = DiTTransformer2DModel.from_config(config)
        plain = copy.deepcopy(self).unfuse_qkv()
        for name, _ in stock.named_children():
            setattr(stock, name, getattr(plain, name))
        for block in stock.transformer_blocks:
            norm = block.norm1
            with torch.device("meta"):
                block.norm1 = AdaLayerNormZero(self.inner_dim, self.num_classes)
            block.norm1.silu, block.norm1.linear, block.norm1.norm = norm.silu, norm.linear, norm.norm
            block.norm1.emb = copy.deepcopy(plain.conditioning)
        return stock.train(self.training)

    def _share_conditioning(self) -> None:
        self.conditioning = self.transformer_blocks[0].norm1.emb
        self.conditioning.class_embedder.dropout_prob = 0.0  # labels are dropped by the task, once per sample
        for block in self.transformer_blocks:
            block.norm1 = SharedAdaLayerNormZero(block.norm1)
        self.set_numerics(stock=False)

    def set_numerics(self, *, stock: bool) -> None:
        """Use the timestep frequencies and norm eps of the original DiT (``stock=False``) or of stock diffusers."""
        self.conditioning.time_proj.downscale_freq_shift = 1 if stock else 0
        for block in self.transformer_blocks:
            block.norm3.eps = self.config.norm_eps if stock else ORIGINAL_NORM_EPS

    @property
    def label_table(self) -> nn.Module:
        """The class embedding with ``num_classes + 1`` rows, the last one for the null class."""
        return self.conditioning.class_embedder.embedding_table

    @property
    def num_classes(self) -> int:
        return self.config.num_embeds_ada_norm

    @property
    def null_class(self) -> int:
        """The label that means "unconditional": the table's last row."""
        return self.num_classes

    @property
    def learns_variance(self) -> bool:
        return self.out_channels == 2 * self.config.in_channels

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor,
        cross_attention_kwargs: dict | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predict noise (and variance) for latents (N, C, H, W) -> (N, C or 2C, H, W)."""
        x = self.pos_embed(hidden_states)  # (N, T, D)
        conditioning = self.conditioning(timestep, class_labels, hidden_dtype=x.dtype)  # (N, D)
        for block in self.transformer_blocks:
            inputs = (x, None, None, None, conditioning, cross_attention_kwargs, None)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x = self._gradient_checkpointing_func(block, *inputs)
            else:
                x = block(*inputs)
        shift, scale = self.proj_out_1(F.silu(conditioning)).chunk(2, dim=1)
        x = self.norm_out(x) * (1 + scale[:, None]) + shift[:, None]
        output = self._unpatchify(self.proj_out_2(x))
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _unpatchify(self, x: torch.Tensor) -> torch.Tensor:
        side, p, c = int(x.shape[1] ** 0.5), self.patch_size, self.out_channels
        x = x.reshape(-1, side, side, p, p, c)  # (N, h, w, p, q, C)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(-1, c, side * p, side * p)

    def set_classes(
        self,
        class_names: Sequence[str],
        old_names: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Matches:
        """Give the model a label table for ``class_names``, and return which classes kept their row.

        A class that the old table knows by name (`match_classes`) keeps its row, and so does the null class. All other
        rows are drawn from the normal distribution of the old rows (mean and standard deviation per dimension), so the
        conditioning has the scale that the network was trained on.
        """
        old = self.label_table.weight.detach()
        matches = match_classes(class_names, old_names or [])
        rows = old[:-1].float()
        table = rows.mean(0) + rows.std(0, correction=0) * torch.randn(
            len(class_names) + 1, old.shape[1], generator=generator
        ).to(rows.device)
        for row, name in enumerate(class_names):
            if name in matches.rows:
                table[row] = rows[matches.rows[name]]
        table[-1] = old[-1]
        self.conditioning.class_embedder.embedding_table = nn.Embedding.from_pretrained(
            table.to(old.dtype), freeze=False
        )
        self.conditioning.class_embedder.num_classes = len(class_names)
        self.register_to_config(num_embeds_ada_norm=len(class_names))
        return matches

    def fuse_qkv(self) -> "DiT":
        """Join ``to_q, to_k, to_v`` of each block into one ``to_qkv``, as in the original, without changing outputs."""
        for block in self.transformer_blocks:
            _fuse(block.attn1)
        return self

    def unfuse_qkv(self) -> "DiT":
        """Undo `fuse_qkv`; a model that is not fused is left as it is."""
        for block in self.transformer_blocks:
            _unfuse(block.attn1)
        return self


def _check_same_embedders(stock: DiTTransformer2DModel) -> None:
    first = stock.transformer_blocks[0].norm1.emb.state_dict()
    for index, block in enumerate(stock.transformer_blocks):
        for key, value in block.norm1.emb.state_dict().items():
            if not value.is_meta and not torch.equal(value, first[key]):
                raise InputError(
                    f"transformer_blocks.{index}.norm1.emb.{key} differs from block 0's: a DiT has one conditioning "
                    "embedder, and this checkpoint's copies were trained apart; load a checkpoint whose copies agree"
                )


def _fuse(attention: Attention) -> None:
    if not hasattr(attention, "to_qkv"):
        attention.to_qkv = join_linears([attention.to_q, attention.to_k, attention.to_v])
        del attention.to_q, attention.to_k, attention.to_v
        attention.fused_projections = True
        attention.set_processor(FusedAttnProcessor2_0())


def _unfuse(attention: Attention) -> None:
    if hasattr(attention, "to_qkv"):
        attention.to_q, attention.to_k, attention.to_v = split_linear(attention.to_qkv, 3)
        del attention.to_qkv
        attention.fused_projections = False
        attention.set_processor(AttnProcessor2_0())
