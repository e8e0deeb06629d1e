"""The forward pass of an adapted layer and its gradients, by the fastest exact path (see `vectors` for the formula)."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from onelora_vision.tuners.onelora.compression import compress, taking_turns
from onelora_vision.tuners.onelora.vectors import Vectors

_MIX_ROWS = 4096


_force_plain: ContextVar[bool] = ContextVar("force_plain", default=False)


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Use the plain formula inside the block: slower, but differentiable any number of times."""
    token = _force_plain.set(True)
    try:
        yield
    finally:
        _force_plain.reset(token)


def _use_plain() -> bool:
    """Whether to use plain operations: on request, under torch.compile (Inductor fuses them), tracing or functorch."""
    return (
        torch.compiler.is_compiling()
        or _force_plain.get()
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, vectors: Sequence[Vectors]) -> Tensor:
    """The adapted linear layer for a plain frozen weight, by the fastest exact path.

    Saves for the backward pass what the frozen layer saves plus, with b, one value per token and compression vector,
    such as ``sum_i x_i``. (gamma also needs the frozen layer's output.) The output has the dtype of the frozen layer's
    output.

    Args:
        x: (..., k) input. weight: (d, k). bias: (d,) or None. vectors: from `compose`.
    """
    first, rest = vectors[0], vectors[1:]
    dtype = _product_dtype(x, weight)
    is_exact = x.dtype == weight.dtype == dtype and dtype in (torch.float32, torch.float64)
    if first.beta is not None and first.gamma is None and is_exact:
        # In fp32, adding the shift to the bias is free; a half-precision bias would round it away.
        bias = first.beta if bias is None else bias + first.beta
        first = Vectors(b=first.b, v=first.v)  # gamma is None here; older torch cannot trace _replace
    is_plain = _use_plain() or (weight.requires_grad and torch.is_grad_enabled())
    if is_plain or dtype is None or first.gamma is not None or first.beta is not None or first.b is None:
        y = epilogue(F.linear(x, weight, bias), x, [first])
    else:
        y = _sum_linear(x, weight, bias, first.b, first.v, dtype)
    return epilogue(y, x, rest)


def _product_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The dtype of ``F.linear``: autocast's (it leaves fp64 alone), else that of both operands; None if they differ."""
    if torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, weight.dtype):
        return torch.get_autocast_dtype(x.device.type)
    return weight.dtype if x.dtype == weight.dtype else None


def epilogue(z: Tensor, x: Tensor, vectors: Sequence[Vectors]) -> Tensor:
    """``gamma * (z + beta) + b * sum x`` for the output z (..., d) of any frozen layer and its input x (..., k)."""
    for b, beta, gamma, v in vectors:
        if b is None and beta is None and gamma is None:
            continue
        s = None if b is None else compress(x, v)
        z = plain_epilogue(z, s, gamma, beta, b) if _use_plain() else _Epilogue.apply(z, s, gamma, beta, b)
    return z


def mixed_epilogue(z: Tensor, x: Tensor, adapters: Sequence[Vectors], choice: Tensor) -> Tensor:
    """`epilogue` where sample i of z (batch, ..., d) and x (batch, ..., k) uses ``adapters[choice[i]]``.

    A plain feature sum is computed once; each sample gathers its own vectors.
    """

    def gather(vectors: list[Tensor | None], neutral: float, like: Tensor) -> Tensor | None:
        if all(vector is None for vector in vectors):
            return None
        filler = torch.full(like.shape[-1:], neutral, dtype=_at_least_float32(like), device=like.device)
        table = torch.stack([filler if vector is None else vector for vector in vectors])
        return table[choice].view(len(choice), *[1] * (like.ndim - 2), -1)

    b = gather([a.b for a in adapters], 0.0, z)
    if b is None:
        s = None
    elif all(a.v is None for a in adapters):
        s = compress(x, None)
    else:
        take_turns = any(a.v is not None and a.v.ndim > 1 for a in adapters)
        s = _sums_by_adapter(x, adapters, choice, z.shape[-1] if take_turns else 1)
    gamma = gather([a.gamma for a in adapters], 1.0, z)
    return plain_epilogue(z, s, gamma, gather([a.beta for a in adapters], 0.0, z), b)


def _sums_by_adapter(x: Tensor, adapters: Sequence[Vectors], choice: Tensor, outputs: int) -> Tensor:
    """What each output multiplies, (batch, ..., outputs), when the adapters compress the input differently.

    ``outputs`` is 1 if all outputs of a layer multiply the same value.
    """
    sums = x.new_zeros(*x.shape[:-1], outputs, dtype=_at_least_float32(x))
    for number, adapter in enumerate(adapters):
        if adapter.b is not None:
            mine = choice == number
            sums[mine] = taking_turns(compress(x[mine], adapter.v), outputs).expand(-1, *sums.shape[1:])
    return sums


def plain_epilogue(z: Tensor, s: Tensor | None, gamma: Tensor | None, beta: Tensor | None, b: Tensor | None) -> Tensor:
    """The epilogue in ordinary operations: the reference, in the vectors' precision, rounded once to z's dtype."""
    y = z if beta is None else z + beta
    y = y if gamma is None else gamma * y
    return (y if b is None else torch.addcmul(y, taking_turns(s, b.shape[-1]), b)).to(z.dtype)


def gathered_linear(x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor, v: Tensor | None) -> Tensor:
    """``W x + bias + b * sum v x`` for x (batch, ..., k) and a separate b for each sample, (batch, 1, ..., d)."""
    s, dtype = taking_turns(compress(x, v), len(weight)), _product_dtype(x, weight)
    if x.dtype == dtype and _starts_from_the_sums(weight) and not _use_plain():
        y = _start(s, b, bias).contiguous()
        y.view(-1, len(weight)).addmm_(x.reshape(-1, x.shape[-1]), weight.t())
        return y
    return plain_epilogue(F.linear(x, weight, bias), s, None, None, b)


def _sum_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, b: Tensor, v: Tensor | None, dtype: torch.dtype
) -> Tensor:
    # Two dimensions inside: with more, the product is a view, which hosts may not change in place after a Function.
    rows, shape = x.reshape(-1, x.shape[-1]), (*x.shape[:-1], len(weight))
    if not torch.is_autocast_enabled(x.device.type):
        return _SumLinear.apply(rows, weight, bias, b, v, torch.is_grad_enabled()).view(shape)
    with torch.autocast(x.device.type, enabled=False):
        bias = None if bias is None else bias.to(dtype)
        return _SumLinear.apply(rows, weight.to(dtype), bias, b, v, torch.is_grad_enabled()).view(shape)


def _starts_from_the_sums(weight: Tensor) -> bool:
    """Whether to write the rank-1 part first and add the matrix product to it, which saves a pass over the output.

    True on CPUs in fp32 and better. In bf16 and fp16 the rank-1 part would be rounded before the product is added.
    """
    return weight.dtype in (torch.float32, torch.float64) and weight.device.type == "cpu"


def _start(s: Tensor, b: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """``bias + b s``, for shapes that broadcast."""
    return torch.mul(s, b, out=out) if bias is None else torch.addcmul(bias, s, b, out=out)


def _in_turns(vector: Tensor, count: int) -> Tensor:
    """``vector`` (d,) as (d / count, count): outputs that multiply the same compressed input share a column."""
    return vector.view(-1, count)


def _takes_the_adapted_weight(rows: Tensor, weight: Tensor, v: Tensor | None) -> bool:
    """Whether to form ``W + ΔW`` for the product.

    With several v, this is one pass over W. The alternative takes two passes over the tokens and a small product, which
    is slow on a CPU core. W is the larger of the two if there are fewer than half as many tokens as outputs.
    """
    return v is not None and v.ndim > 1 and _starts_from_the_sums(weight) and 2 * len(rows) >= len(weight)


def _adapted_weight(weight: Tensor, b: Tensor, v: Tensor) -> Tensor:
    """``W + ΔW`` (d, k) for v (m, k), whose row i is ``W_i + b_i v_(i mod m)``."""
    shape = (-1, *v.shape)
    return torch.addcmul(weight.view(shape), b.view(shape[:2]).unsqueeze(-1), v).view(weight.shape)


class _SumLinear(torch.autograd.Function):
    """``W x + bias + b * sum x`` with a frozen weight, for x (tokens, k)."""

    @staticmethod
    def forward(ctx, x, weight, bias, b, v, with_grad):
        trains_b = with_grad and ctx.needs_input_grad[3]
        if _takes_the_adapted_weight(x, weight, v):
            s = rows_dot(x, v) if trains_b else None
            y = F.linear(x, _adapted_weight(weight, b, v), bias)
        else:
            s, y = _SumLinear._from_the_sums(x, weight, bias, b, v)
        ctx.x_dtype = x.dtype
        # Only x's gradient needs the weight; under autocast it is a copy, which the first layer need not keep.
        ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None, b, v, s if trains_b else None)
        return y

    @staticmethod
    def _from_the_sums(x, weight, bias, b, v):
        """What b multiplies, (tokens, m), and the output."""
        s = compress(x, None) if v is None else rows_dot(x, v)
        count = s.shape[1]
        turning_b, sums = _in_turns(b, count), s[:, None]  # (d / m, m), (tokens, 1, m)
        if _starts_from_the_sums(weight):
            y = x.new_empty(len(x), len(b), dtype=weight.dtype)  # not a view, which hosts may not change in place
            turning_bias = None if bias is None else _in_turns(bias, count)
            _start(sums, turning_b, turning_bias, out=y.view(len(x), -1, count))
            y.addmm_(x, weight.t())
        else:
            y = F.linear(x.to(weight.dtype), weight, bias)
            y.view(len(x), -1, count).addcmul_(sums, turning_b)
        return s, y

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fused 1LoRA operator keeps one value per token and cannot be differentiated twice: run the "
                "forward pass inside onelora_vision.tuners.onelora.operator.plain_operations()"
            )
        weight, b, v, s = ctx.saved_tensors
        needs_x, _, needs_bias, needs_b = ctx.needs_input_grad[:4]
        with torch.autocast(grad.device.type, enabled=False):
            # The vectors come first: grad is still in the cache, from which the matrix product would evict it.
            grad_b = weighted_sum(grad, s) if needs_b else None
            grad_bias = grad.sum(0) if needs_bias else None
            grad_x = _grad_input(grad, weight, b, v, ctx.x_dtype) if needs_x else None
        return grad_x, None, grad_bias, grad_b, None, None


def _grad_input(rows: Tensor, weight: Tensor, b: Tensor, v: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``rows (W + b v^T)`` (tokens, k), in the order of the forward pass."""
    if _takes_the_adapted_weight(rows, weight, v):
        return rows @ _adapted_weight(weight, b, v)
    if v is not None and v.ndim > 1:
        share = turns_dot(rows, b, len(v))  # (tokens, m)
        if _starts_from_the_sums(weight):
            return torch.mm(share, v.to(share)).addmm_(rows, weight)
        return (rows @ weight).to(dtype).add_(share @ v.to(share))
    share = rows_dot(rows, b)  # (tokens, 1)
    if _starts_from_the_sums(weight):
        return torch.addmm(share, rows, weight) if v is None else (share * v).addmm_(rows, weight)
    grad = (rows @ weight).to(dtype)
    return grad.add_(share) if v is None else grad.addcmul_(share, v)


class _Epilogue(torch.autograd.Function):
    """`plain_epilogue` that only keeps z if gamma is trained, and computes in fp32 without saving fp32 copies."""

    @staticmethod
    def forward(ctx, z, s, gamma, beta, b):
        ctx.save_for_backward(z if ctx.needs_input_grad[2] else None, s, gamma, beta, b)
        return plain_epilogue(z, s, gamma, beta, b)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fused 1LoRA operator cannot be differentiated twice: run the forward pass inside "
                "onelora_vision.tuners.onelora.operator.plain_operations()"
            )
        z, s, gamma, beta, b = ctx.saved_tensors
        needs_z, needs_s, needs_gamma, needs_beta, needs_b = ctx.needs_input_grad
        with torch.autocast(grad.device.type, enabled=False):
            rows = grad.reshape(-1, grad.shape[-1])  # (tokens, d)
            total = rows.sum(0, dtype=_at_least_float32(rows)) if needs_beta or needs_gamma else None
            grad_s = turns_dot(rows, b, s.shape[-1]).view_as(s) if needs_s else None
            grad_b = weighted_sum(rows, s.reshape(len(rows), -1)) if needs_b else None
            grad_gamma = None
            if needs_gamma:
                grad_gamma = columns_dot(rows, z.reshape(rows.shape))
                grad_gamma = grad_gamma if beta is None else grad_gamma + beta * total
            grad_beta = None
            if needs_beta:
                grad_beta = total if gamma is None else gamma * total
            grad_z = None
            if needs_z:
                grad_z = grad if gamma is None else (grad * gamma).to(grad.dtype)
        return grad_z, grad_s, grad_gamma, grad_beta, grad_b


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """``sum_t rows[t] * weights[t]`` (d,) for rows (tokens, d) and alternating weights (tokens, m), in fp32 or better.

    Rows of lower precision are converted one block at a time.
    """
    if weights.shape[1] > 1:
        return _turning_sum(rows, weights)
    weights = weights.reshape(-1)
    if rows.dtype == weights.dtype:
        return torch.mv(rows.t(), weights)
    result = torch.zeros(rows.shape[1], dtype=weights.dtype, device=rows.device)
    for block, share in zip(rows.split(_MIX_ROWS), weights.split(_MIX_ROWS)):
        result.addmv_(block.to(weights.dtype).t(), share)
    return result


def _turning_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """The entries of ``rows^T weights`` (d, m) that belong to each output's own vector, (d,).

    A BLAS product is cheaper than a sum over strided rows.
    """
    count = weights.shape[1]
    result = torch.zeros(rows.shape[1], count, dtype=weights.dtype, device=rows.device)
    for block, share in zip(rows.split(_MIX_ROWS), weights.split(_MIX_ROWS)):
        result.addmm_(block.to(weights.dtype).t(), share)
    return _own_turns(result).reshape(-1)


def _own_turns(matrix: Tensor) -> Tensor:
    """A view of the entries (i, i mod m) of a matrix (d, m), as (d / m, m)."""
    count = matrix.shape[1]
    return matrix.view(-1, count, count).diagonal(dim1=1, dim2=2)


def rows_dot(rows: Tensor, vectors: Tensor) -> Tensor:
    """``rows vectors^T`` (tokens, m) for rows (tokens, d) and vectors (m, d), or (d,) for m = 1.

    Computed in the higher precision of the two, and at least in fp32.
    """
    vectors = vectors.to(torch.promote_types(vectors.dtype, _at_least_float32(rows)))
    if rows.dtype == vectors.dtype:
        return torch.mv(rows, vectors)[:, None] if vectors.ndim == 1 else rows @ vectors.t()
    return torch.cat([rows_dot(block.to(vectors.dtype), vectors) for block in rows.split(_MIX_ROWS)])


def turns_dot(rows: Tensor, b: Tensor, count: int) -> Tensor:
    """Sum of ``rows * b`` over the outputs that share a vector, (tokens, count), for rows (tokens, d) and b (d,)."""
    if count == 1:
        return rows_dot(rows, b)
    b = b.to(torch.promote_types(b.dtype, _at_least_float32(rows)))
    matrix = b.new_zeros(len(b), count)
    _own_turns(matrix).copy_(b.view(-1, count))
    return torch.cat([block.to(b.dtype) @ matrix for block in rows.split(_MIX_ROWS)])


def columns_dot(rows: Tensor, others: Tensor) -> Tensor:
    """``sum_t rows * others`` (d,), in fp32 or better, one block of tokens at a time."""
    dtype = _at_least_float32(rows)
    result = torch.zeros(rows.shape[1], dtype=dtype, device=rows.device)
    for block, other in zip(rows.split(_MIX_ROWS), others.split(_MIX_ROWS)):
        result += torch.einsum("td,td->d", block.to(dtype), other.to(dtype))
    return result
