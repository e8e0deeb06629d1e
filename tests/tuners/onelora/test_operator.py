import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.subjects import saved_bytes
from onelora_vision.tuners.onelora import operator
from onelora_vision.tuners.onelora.compression import random_compression
from onelora_vision.tuners.onelora.vectors import Vectors

D, K = 6, 5
PARTS = [set(c) for size in (1, 2, 3) for c in itertools.combinations(("b", "beta", "gamma"), size)]
#: What takes the place of ones: nothing, a vector, or three that the outputs take turns with.
COMPRESSIONS = {"sum": None, "vector": random_compression(K, 3), "turns": torch.linspace(-1, 2, 3 * K).view(3, K)}
any_compression = pytest.mark.parametrize("v", COMPRESSIONS.values(), ids=COMPRESSIONS)


def problem(tokens, parts, dtype=torch.float32, v=None):
    """A random input (2, tokens, K), weight (D, K), bias (D,) and the vectors of ``parts``."""
    torch.manual_seed(0)
    vector_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(2, tokens, K, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(D, K, dtype=dtype), torch.randn(D, dtype=dtype)
    vectors = [
        torch.randn(D, dtype=vector_dtype, requires_grad=True) if p in parts else None for p in Vectors._fields[:3]
    ]
    return x, weight, bias, Vectors(*vectors, v)


def run(x, weight, bias, vectors, autocast=False):
    inputs = [tensor for tensor in (x, *vectors[:3]) if tensor is not None]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = operator.linear(x, weight, bias, [vectors])
    torch.manual_seed(1)
    return y, torch.autograd.grad(y, inputs, torch.randn_like(y))


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("parts", PARTS, ids=lambda p: "+".join(sorted(p)))
@pytest.mark.parametrize(
    ("dtype", "autocast", "tolerance"),
    [
        (torch.float64, False, 1e-12),
        (torch.float32, False, 1e-5),
        (torch.float32, True, 1e-2),
        (torch.bfloat16, False, 1e-2),
        (torch.float16, False, 1e-3),
    ],
)
@any_compression
def test_fused_operator_gives_the_plain_formulas_numbers(dtype, autocast, tolerance, parts, tokens, v):
    case = problem(tokens, parts, dtype, v)
    y, gradients = run(*case, autocast)
    with operator.plain_operations():
        expected, expected_gradients = run(*case, autocast)
    assert y.dtype == expected.dtype == (torch.bfloat16 if autocast else dtype)
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    for got, wanted in zip(gradients, expected_gradients):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())


@pytest.mark.parametrize("bias", [True, False])
def test_formula_is_the_papers(bias):
    x, weight, c, (b, beta, gamma, _) = problem(7, {"b", "beta", "gamma"}, torch.float64)
    y = operator.linear(x, weight, c if bias else None, [Vectors(b, beta, gamma)])
    wx = x @ weight.T + (c if bias else 0)
    torch.testing.assert_close(y, gamma * (wx + beta) + b * x.sum(-1, keepdim=True))
    y = operator.linear(x, weight, c if bias else None, [Vectors(b)])
    torch.testing.assert_close(y, wx + b * x.sum(-1, keepdim=True))
    v = torch.randn(3, K, dtype=torch.float64)
    y = operator.linear(x, weight, c if bias else None, [Vectors(b, v=v)])
    torch.testing.assert_close(y, wx + x @ (b[:, None] * v[torch.tensor([0, 1, 2, 0, 1, 2])]).T)


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("parts", PARTS, ids=lambda p: "+".join(sorted(p)))
@any_compression
def test_gradcheck(parts, tokens, v):
    v = None if v is None else v.double()
    x, weight, bias, vectors = problem(tokens, parts, torch.float64, v)
    bias.requires_grad_()

    def f(x, bias, *tensors):
        rebuilt = iter(tensors)
        return operator.linear(
            x, weight, bias, [Vectors(*[t if t is None else next(rebuilt) for t in vectors[:3]], v)]
        )

    assert torch.autograd.gradcheck(f, (x, bias, *[t for t in vectors[:3] if t is not None]))


@any_compression
def test_vectors_in_fp32_leave_a_layer_in_fp64_its_precision(v):
    x, weight, bias, vectors = problem(9, {"b"}, torch.float64, v)
    b = vectors.b.detach().float().requires_grad_()
    y, gradients = run(x, weight, bias, Vectors(b, v=v))
    with operator.plain_operations():
        expected, expected_gradients = run(x, weight, bias, Vectors(b, v=v))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], expected_gradients[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("v", [None, torch.randn(16, 64)], ids=["sum", "turns"])
@pytest.mark.parametrize("tokens", [20, 50])  # on both sides of half of the outputs
def test_b_of_zero_leaves_the_frozen_layers_numbers_bit_for_bit(v, tokens):
    x, weight, bias = torch.randn(tokens, 64), torch.randn(96, 64), torch.randn(96)
    for c in (bias, None):
        assert torch.equal(operator.linear(x, weight, c, [Vectors(torch.zeros(96), v=v)]), F.linear(x, weight, c))


def test_small_b_is_not_rounded_away_on_a_half_precision_weight():
    x = torch.full((64, K), 0.25, dtype=torch.bfloat16)
    weight = torch.full((D, K), 8.0, dtype=torch.bfloat16)  # 8 + 0.01 is 8 in bf16
    y = operator.linear(x, weight, None, [Vectors(torch.full((D,), 0.02))])
    step = 2**-4  # the spacing of bf16 numbers near 10
    assert (y - F.linear(x, weight)).abs().max() <= step
    y = operator.linear(x, weight, None, [Vectors(torch.full((D,), 0.2))])
    torch.testing.assert_close(y.float(), torch.full((64, D), 10.25), atol=step / 2, rtol=0)


def test_dtypes_that_do_not_fit_are_refused_as_by_the_frozen_layer():
    x, weight, bias, vectors = problem(9, {"b"})
    with pytest.raises(RuntimeError, match="same dtype"):
        operator.linear(x.bfloat16(), weight, bias, [vectors])


def test_autocast_leaves_float64_alone():
    x, weight, bias, vectors = problem(9, {"b"}, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(x, weight, bias).dtype == torch.float64
        y = operator.linear(x, weight, bias, [vectors])
    torch.testing.assert_close(y, operator.linear(x, weight, bias, [vectors]))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("tokens", [4, 200])
@pytest.mark.parametrize("count", [1, 16])
def test_saves_one_value_per_token_and_compression_vector_beyond_the_frozen_layer(tokens, autocast, count):
    k, d = 64, 96
    v = None if count == 1 else torch.randn(count, k)
    x, weight, bias, b = torch.randn(tokens, k, requires_grad=True), torch.randn(d, k), torch.randn(d), torch.zeros(d)
    b.requires_grad_()

    def bytes_of(f):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return saved_bytes(f, [x, weight, bias, b])

    frozen = bytes_of(lambda: F.linear(x, weight, bias))
    kept = 4 * tokens * count + (0 if v is None else v.nbytes)
    assert bytes_of(lambda: operator.linear(x, weight, bias, [Vectors(b, v=v)])) == frozen + kept
    with operator.plain_operations():  # the plain formula also keeps b's broadcast operands
        assert v is not None or bytes_of(lambda: operator.linear(x, weight, bias, [Vectors(b)])) >= frozen + kept


def test_a_whole_network_saves_what_the_frozen_one_does_and_the_sums():
    net = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)).requires_grad_(False)
    vectors = [Vectors(torch.zeros(64, requires_grad=True)), Vectors(torch.zeros(32, requires_grad=True))]
    x = torch.randn(500, 32, requires_grad=True)
    owned = [x, *net.parameters(), *[v.b for v in vectors]]

    def adapted():
        h = operator.linear(x, net[0].weight, net[0].bias, [vectors[0]])
        return operator.linear(F.gelu(h), net[2].weight, net[2].bias, [vectors[1]])

    assert saved_bytes(adapted, owned) == saved_bytes(lambda: net(x), owned) + 2 * 4 * 500


def test_trained_weight_gets_its_gradient():
    x, weight, bias, vectors = problem(9, {"b", "gamma"}, torch.float64)
    weight.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda w, b: operator.linear(x, w, bias, [vectors._replace(b=b)]), (weight, vectors.b)
    )


def test_second_derivative_is_refused_with_the_way_out():
    x, weight, bias, vectors = problem(9, {"b"}, torch.float64)
    y = operator.linear(x, weight, bias, [vectors]).square().sum()
    with pytest.raises(RuntimeError, match="plain_operations"):
        torch.autograd.grad(y, x, create_graph=True)
    with operator.plain_operations():
        assert torch.autograd.gradgradcheck(
            lambda x, b: operator.linear(x, weight, bias, [Vectors(b)]), (x, vectors.b)
        )


@any_compression
def test_functorch_per_sample_gradients(v):
    x, weight, bias, vectors = problem(9, {"b", "gamma"}, torch.float64, v)

    def loss(b, sample):
        return operator.linear(sample, weight, bias, [vectors._replace(b=b)]).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(vectors.b, x)
    for sample, got in zip(x, per_sample):
        torch.testing.assert_close(got, torch.autograd.grad(loss(vectors.b, sample), vectors.b)[0])


@pytest.mark.parametrize("parts", PARTS, ids=lambda p: "+".join(sorted(p)))
@any_compression
def test_compiles_without_a_graph_break(parts, v):
    x, weight, bias, vectors = problem(9, parts, v=v)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, *parts: operator.linear(x, weight, bias, [Vectors(*parts, v)]), backend="aot_eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(x, *vectors[:3]), operator.linear(x, weight, bias, [vectors]))


def test_plain_operations_end_with_the_block_and_are_a_threads_own():
    from concurrent.futures import ThreadPoolExecutor

    def is_plain():
        x, weight, bias, vectors = problem(2, {"b"})
        return type(operator.linear(x, weight, bias, [vectors]).grad_fn.next_functions[0][0]).__name__

    with ThreadPoolExecutor(1) as pool:
        fused = is_plain()
        with operator.plain_operations():
            with operator.plain_operations():
                plain = is_plain()
            assert is_plain() == plain != fused
            assert pool.submit(is_plain).result() == fused
        assert is_plain() == fused


def test_gradient_checkpointing_gives_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    x, weight, bias, vectors = problem(9, {"b"})
    direct = torch.autograd.grad(operator.linear(x, weight, bias, [vectors]).square().sum(), (x, vectors.b))
    y = checkpoint(operator.linear, x, weight, bias, [vectors], use_reentrant=False)
    for got, wanted in zip(torch.autograd.grad(y.square().sum(), (x, vectors.b)), direct):
        assert torch.equal(got, wanted)


@any_compression
@pytest.mark.parametrize("bias", [True, False])
def test_a_host_may_change_the_output_in_place(v, bias):
    x, weight, c, vectors = problem(9, {"b"}, v=v)
    y = operator.linear(x[0], weight, c if bias else None, [vectors])
    y += 1
    y.mul_(2).sum().backward()
    assert torch.isfinite(vectors.b.grad).all()
