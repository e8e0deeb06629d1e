"""Candidates for the rows of the update: what they are, and that one of them trains."""

import pytest
import torch

from benchmarks.directions import __main__ as directions
from benchmarks.directions.candidates import CANDIDATES, rows_of
from benchmarks.directions.tuner import read
from onelora_vision.errors import InputError
from onelora_vision.tuners.onelora.compression import subspace_compression


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_rows_have_the_norm_of_ones_and_are_read_as_their_matrix(candidate):
    torch.manual_seed(0)
    weight, x = torch.randn(48, 20), torch.randn(5, 20)
    rows = rows_of(candidate, weight, "blocks.0.mlp.fc1")
    matrix = rows.matrix()
    torch.testing.assert_close(read(x, rows), x @ matrix.T, atol=1e-4, rtol=1e-4)
    if candidate != "sized16":
        torch.testing.assert_close(matrix.norm(dim=1), torch.full((48,), 20**0.5))
    assert torch.equal(matrix, rows_of(candidate, weight, "blocks.0.mlp.fc1").matrix())


def test_the_candidate_that_is_an_option_now_is_the_same_there():
    weight = torch.randn(48, 20, generator=torch.Generator().manual_seed(0))
    ours, theirs = rows_of("power16", weight, "").directions, subspace_compression(weight, 16)
    torch.testing.assert_close((ours / theirs).abs(), torch.ones_like(ours), atol=1e-3, rtol=0)  # signs are its own


def test_the_best_rows_reach_all_of_an_update_of_theirs():
    rows = rows_of("singular4", torch.randn(12, 8), "")
    update = torch.randn(12)[:, None] * rows.matrix()
    assert directions.reached(update, rows) == pytest.approx(update.square().sum().item(), rel=1e-5)


def test_predict_needs_an_adapter():
    with pytest.raises(InputError, match="predict needs --full"):
        directions.main.__wrapped__(["predict"])
