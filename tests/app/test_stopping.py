"""The app as a process, and how it ends."""

import os
import signal
import subprocess
import sys

from processes import free_port


def test_ctrl_c_while_something_is_drawn_ends_in_one_line_and_leaves_no_files(tmp_path):
    command = [sys.executable, "-m", "app", "--port", str(free_port()), "--output_dir", str(tmp_path / "output")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    process = subprocess.Popen(command, env=environment, **pipes)
    assert "Ctrl-C stops it" in process.stdout.readline()  # and the example is drawn
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, said) == (130, "stopped by SIGINT\n")
    assert not list((tmp_path / "temporary").glob("onelora-app-*"))
