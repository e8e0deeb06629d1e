"""The base shared between two processes: same numbers, half the memory, and plain blocks whenever one asks for them."""

import json

import pytest
import sharded_steps
from accelerate import Accelerator
from processes import run_together

from onelora_vision.errors import InputError
from onelora_vision.training.sharding import ShardedBlocks


def reports_of(*methods):
    (code, output), (other, _) = run_together([sharded_steps.__file__, *methods])
    assert (code, other) == (0, 0)
    return {row["method"]: row for row in map(json.loads, output.splitlines())}


@pytest.fixture(scope="module")
def reports():
    return reports_of("onelora", "difffit", "mora6")


@pytest.mark.parametrize("method", ["onelora", "difffit", "mora6"])
def test_steps_are_those_of_a_whole_base(reports, method):
    """1LoRA; with recomputed activations; with compiled blocks, too."""
    check_steps(reports[method])


@pytest.mark.slow
def test_steps_of_compiled_blocks_that_keep_their_activations_are_those_of_a_whole_base():
    check_steps(reports_of("lora")["lora"])


def check_steps(report):
    whole, sharded = report["whole"], report["sharded"]
    assert sharded["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert sharded["outputs"] == pytest.approx(whole["outputs"], rel=1e-4, abs=1e-5)
    assert sharded["keys"] == whole["keys"]


def test_a_process_holds_half_of_the_blocks_but_where_they_are_asked_for(reports):
    for row in (row for name, row in reports.items() if name != "no blocks"):
        held, whole = row["sharded"], row["whole"]["held"]
        assert 0.5 * whole < held["held"] < 0.6 * whole  # what is not in a block stays whole
        assert held["held again"] == held["held"]
        assert held["held whole"] == held["held at the end"] == whole


def test_what_cannot_be_shared_is_refused(reports):
    assert "has no list of similar blocks" in reports["no blocks"]["error"]
    with pytest.raises(InputError, match="there is only one: start several"):
        ShardedBlocks(sharded_steps.make_model("onelora"), Accelerator(cpu=True))
