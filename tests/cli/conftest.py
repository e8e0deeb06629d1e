import json

import pytest

from onelora_vision.cli import main


@pytest.fixture
def onelora(capsys):
    """Run the command as a user does: arguments -> (exit code, parsed JSON or text, stderr)."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return caught.value.code, json.loads(out) if "--json" in arguments and out else out, err

    return run
