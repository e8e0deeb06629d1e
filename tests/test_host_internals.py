"""The list of what we rely on is true of the installed releases, and says so when it is not."""

import host_internals
import pytest


@pytest.mark.parametrize("reliance", host_internals.RELIANCES, ids=lambda r: f"{r.host}: {r.internal}")
def test_the_internals_are_where_we_rely_on_them(reliance):
    reliance.check()


def test_what_has_moved_is_explained(monkeypatch, capsys):
    from peft.tuners.tuners_utils import BaseTuner

    monkeypatch.delattr(BaseTuner, "_remap_adapter_state_dict_for_load")
    assert host_internals.main() == 1
    moved, why = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("ok")][1:]
    assert "MOVED  peft: BaseTuner._remap_adapter_state_dict_for_load" in moved
    assert "loading is strict there; mend onelora_vision/tuners/base.py" in why
