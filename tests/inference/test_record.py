"""What a PNG says of how it was drawn can be read back."""

import json
from dataclasses import replace

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
        SampleRecord(replace(SETTINGS, guidance_base=True), (UsedAdapter("out/adapter"),), True, "pie", 2, 5),
        SampleRecord(SETTINGS, request={"classes": ["pie"], "x": {"name": "seed", "values": [1, 2]}}),
    ],
    ids=["onelora sample", "app", "guided from the base", "grid"],
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
        ({"guidance_base": "no"}, "must be true or false"),
        ({"steps": 0}, "at least 1 step"),
        ({"sampler": "dimm"}, "did you mean 'ddim'"),
    ],
)
def test_damaged_settings_are_one_message(change, message):
    settings = json.dumps({**SampleRecord(SETTINGS).to_json(), **change})
    with pytest.raises(InputError, match=message):
        SampleRecord.from_notes({"settings": settings}, "p.png")


def test_pictures_from_before_there_was_guidance_from_the_base_are_read():
    record = SampleRecord(SETTINGS)
    notes = record.to_notes()
    settings = {key: value for key, value in json.loads(notes["settings"]).items() if key != "guidance_base"}
    assert SampleRecord.from_notes({**notes, "settings": json.dumps(settings)}) == record
