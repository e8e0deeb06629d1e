"""Python processes that have the hosts' libraries imported when they start: forks of one that waits for commands.

For a test that needs a process without this package, and would otherwise wait for the same imports each time.
"""

import json
import os
import runpy
import subprocess
import sys
import traceback

FLAGS = ["-I", "-W", "ignore"]


class ForkedPython:
    """`run` is `subprocess.run` of ``python -I -W ignore FILE ARGUMENTS``; the process to fork is started by the first."""

    def __init__(self):
        self.server = None

    def run(self, command: list[str], **options) -> subprocess.CompletedProcess:
        """The command's exit code and output, as text.

        Args:
            options: those of `subprocess.run` that ask for just this.
        """
        assert command[:4] == [sys.executable, *FLAGS]
        assert options == {"capture_output": True, "text": True, "check": False}
        if self.server is None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self.server = subprocess.Popen([sys.executable, *FLAGS, __file__], **pipes)
        self.server.stdin.write(json.dumps(command[4:]) + "\n")
        self.server.stdin.flush()
        return subprocess.CompletedProcess(command, *json.loads(self.server.stdout.readline()))

    def close(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.communicate()


def _fork(arguments: list[str]) -> tuple[int, str, str]:
    """Run a file with these arguments in a child process: its exit code, stdout and stderr."""
    files = [os.memfd_create(name) for name in ("stdout", "stderr")]
    child = os.fork()
    if not child:
        code = 1
        try:
            for number, file in enumerate(files, 1):
                os.dup2(file, number)
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = []
    for number in files:
        with open(number, "rb") as file:
            file.seek(0)
            texts.append(file.read().decode())
    return code, *texts


def main() -> None:
    from diffusers import DiTPipeline, DiTTransformer2DModel  # noqa: F401
    from diffusers.loaders import PeftAdapterMixin  # noqa: F401
    from peft import PeftModel  # noqa: F401
    from timm import create_model  # noqa: F401
    from transformers import DepthAnythingForDepthEstimation  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(_fork(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
