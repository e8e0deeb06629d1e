"""One process of a training script on one of several machines, for torchrun; where LOST_NODE says so, its machine is lost.

LOST_NODE=1 torchrun --nnodes 2 --node_rank 1 … tests/reliability/node.py classification --output_dir …
"""

import os
import signal
import sys

import environment  # noqa: F401
import jobs


def lose_the_machine_in_step_five() -> None:
    """Kill torchrun, which started this process, and then this process, without a word to anybody."""
    from onelora_vision.training.step import OptimizerStep

    update, calls = OptimizerStep._update, []

    def update_or_die(step: OptimizerStep) -> None:
        calls.append(step)
        if len(calls) == 5:
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        update(step)

    OptimizerStep._update = update_or_die


if __name__ == "__main__":
    if os.environ.get("LOST_NODE") == os.environ["GROUP_RANK"]:
        lose_the_machine_in_step_five()
    jobs.main_of(sys.argv[1])(sys.argv[2:])
