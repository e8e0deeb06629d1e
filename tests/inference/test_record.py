"""What a PNG says of how it was drawn can be read back."""

import json

import pytest
import torch

from onelora_vision.diffusion.settings import SamplingSettings
from onelora_vision.errors import InputError
from onelora_vision.inference.record import SampleRecord, UsedAdapter
from onelora_vision.plots.pictures import read_notes, save_sample

SETTINGS = SamplingSettings("ddim", 7, 2.0, 3, (0.1, 0.9))


@pytest.mark.parametrize(
    "record",
    [
        SampleRecord(SETTINGS, (UsedAdapter("out/adapter"),), True, "crème brûlée", 2, 5),
        SampleRecord(SETTINGS, (UsedAdapter("a", 0.5, "01"), UsedAdapter("b", -1.0, "02")), False, "pie", 0, 1, {"base": ""}),
        SampleRecord(SETTINGS, request={"classes": ["pie"], "x": {"name": "seed", "values": [1, 2]}}),
    ],
    ids=["onelora sample", "app", "grid"],
)  # fmt: skip
def test_a_record_comes_back_from_its_png(record, tmp_path):
    save_sample(tmp_path / "p.png", torch.zeros(3, 4, 4), record.to_notes())
    assert SampleRecord.from_notes(read_notes(tmp_path / "p.png")) == record


def test_the_base_alone_was_drawn_without_the_adapter_that_it_is_compared_with():
    notes = SampleRecord(SETTINGS, (UsedAdapter("out/adapter"),), False).to_notes()
    assert json.loads(notes["settings"])["adapter"] == "out/adapter"
    assert SampleRecord.from_notes(notes).adapters == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "many"}, "p.png: the settings in this PNG are damaged"),
        ({"steps": float("nan")}, "damaged"),
        ({"guidance_interval": [1]}, "damaged"),
        ({"adapters": [{"name": "a"}]}, "damaged"),
        ({"steps": 0}, "at least 1 step"),
        ({"sampler": "dimm"}, "did you mean 'ddim'"),
    ],
)
def test_damaged_settings_are_one_message(change, message):
    settings = json.dumps({**SampleRecord(SETTINGS).to_json(), **change})
    with pytest.raises(InputError, match=message):
        SampleRecord.from_notes({"settings": settings}, "p.png")
