import pytest
import torch

from onelora_vision.tuners.mora import functional
from onelora_vision.tuners.mora.functional import ROTATING, SHARING, bypass, default_r_hat, delta_weight

# (in, out): sizes that r_hat = round(sqrt(out)) does and does not divide, wider and narrower than the input.
SIZES = [(16, 16), (1152, 1152), (768, 3072), (3072, 768), (1000, 1000), (7, 50), (1152, 32), (5, 9)]


@pytest.mark.parametrize("mora_type", [SHARING, ROTATING])
@pytest.mark.parametrize(("k", "d"), SIZES)
def test_delta_weight_is_the_bypass(k, d, mora_type):
    torch.manual_seed(0)
    r = default_r_hat(d, mora_type)
    matrix, x = torch.randn(r, r, dtype=torch.float64), torch.randn(3, 2, k, dtype=torch.float64)
    delta = delta_weight(matrix, k, d, mora_type)
    assert delta.shape == (d, k)
    torch.testing.assert_close(x @ delta.T, bypass(x, matrix, d, mora_type))


@pytest.mark.parametrize(
    ("d", "sharing", "rotating"),
    [(1152, 34, 34), (768, 28, 28), (1000, 32, 32), (32, 6, 6), (1024, 32, 32), (4096, 64, 64), (3456, 59, 58)],
)
def test_default_size_is_the_papers(d, sharing, rotating):
    assert (default_r_hat(d, SHARING), default_r_hat(d, ROTATING)) == (sharing, rotating)


def test_sharing_sums_and_copies_by_the_index_modulo_r():
    k, d, r = 7, 8, 3
    torch.manual_seed(0)
    matrix, x = torch.randn(r, r), torch.randn(k)
    groups = torch.stack([x[[j for j in range(k) if j % r == i]].sum() for i in range(r)])
    expected = torch.stack([(matrix @ groups)[i % r] for i in range(d)])
    torch.testing.assert_close(bypass(x, matrix, d, SHARING), expected)


def test_rotating_turns_each_row_by_its_position():
    k, d, r = 8, 8, 4
    torch.manual_seed(0)
    matrix, x = torch.randn(r, r), torch.randn(k)
    rows = []
    for position, row in enumerate(x.view(2, r)):
        turned = torch.empty(r)
        for j, frequency in enumerate((1.0, 10000.0 ** (-2 / r))):
            angle = torch.tensor(position * frequency)
            a, b = row[j], row[j + r // 2]
            turned[j] = a * angle.cos() - b * angle.sin()
            turned[j + r // 2] = b * angle.cos() + a * angle.sin()
        rows.append(matrix @ turned)
    torch.testing.assert_close(bypass(x, matrix, d, ROTATING), torch.cat(rows))


def test_full_rank_is_reachable():
    """What MoRA is for: a change of rank r_hat with r_hat^2 values."""
    torch.manual_seed(0)
    assert torch.linalg.matrix_rank(delta_weight(torch.randn(4, 4), 16, 16, SHARING)) == 4
    assert torch.linalg.matrix_rank(delta_weight(torch.randn(4, 4), 16, 16, ROTATING)) == 16


@pytest.mark.parametrize("mora_type", [SHARING, ROTATING])
def test_gradcheck(mora_type):
    torch.manual_seed(0)
    x = torch.randn(2, 7, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, m: functional.bypass(x, m, 5, mora_type), (x, matrix))
