"""Python processes that have their imports done when they start: forks of one that waits for commands.

For tests that need processes of their own, and would otherwise spend most of their time on importing the same libraries.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from typing import IO


class ForkedPython:
    """Runs Python files in forks of a process that is started by the first of them.

    Args:
        modules: what that process imports.
        flags: of its Python.
        environment: of that process; by default this one's.
        folder: where it runs; by default this process's.
    """

    def __init__(
        self,
        modules: Sequence[str],
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        folder: str | os.PathLike | None = None,
    ):
        self.command, self.server = [sys.executable, *flags, __file__, *modules], None
        self.place = {"env": environment, "cwd": folder}

    def together(self, *runs: tuple[Sequence[object], Mapping[str, str]]) -> list[tuple[int, str, str]]:
        """Run all at the same time: exit code, stdout and stderr of each.

        Args:
            runs: a file with its arguments, and what its environment has besides.
        """
        if self.server is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.server = subprocess.Popen(self.command, **pipes, **self.place, start_new_session=True)
        line = json.dumps([([str(word) for word in words], dict(environment)) for words, environment in runs])
        try:
            self.server.stdin.write(line + "\n")
            self.server.stdin.flush()
            return [tuple(result) for result in json.loads(self.server.stdout.readline())]
        except BaseException:  # such as the end of a test's time: nobody would read what is still to come
            self.close()
            raise

    def close(self) -> None:
        """End the process and its forks."""
        if self.server is not None:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.communicate()
            self.server = None


def _start(arguments: list[str], environment: dict[str, str]) -> tuple[int, list[IO]]:
    """Run a file with these arguments in a child process: its number, and the files of its stdout and stderr."""
    files = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 - `_end` closes them
    child = os.fork()
    if child:
        return child, files
    code = 1
    try:
        for number, file in enumerate(files, 1):
            os.dup2(file.fileno(), number)
        os.environ.update(environment)
        # PyTorch makes a fork's thread pool anew on first use, which two threads must not do at once.
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(torch.get_num_threads())
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _end(child: int, files: list[IO]) -> tuple[int, str, str]:
    """Wait for a child: its exit code, stdout and stderr."""
    code, texts = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), []
    for file in files:
        with file:
            file.seek(0)
            texts.append(file.read())
    return code, *texts


def main() -> None:
    sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        children = [_start(*run) for run in json.loads(line)]
        print(json.dumps([_end(*child) for child in children]), flush=True)


if __name__ == "__main__":
    main()
