"""`rankmixer` on a rank of a job that goes wrong on purpose: FOLDER FAULT RANK STEP, then the command line.

The fault strikes before the step or, with `tokens-`, in the middle of a forward, where the other ranks of the token
group wait in an exchange. A fault that holds `=` is an override of the configuration, on that rank only.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from rankmixer.launch import cli


def raises() -> None:
    raise LookupError("something is odd")


def sleeps() -> None:
    time.sleep(600)


FAULTS = {
    "stopped": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raises": raises,
    "sleeps": sleeps,
}


def strike_at(fault: str, step: int) -> None:
    from rankmixer.launch.model.optimizers import RankerOptimizer
    from rankmixer_head.token_group import TokenGroup

    strike, in_exchange = FAULTS[fault.removeprefix("tokens-")], fault.startswith("tokens-")
    follow_schedule, mix, now = RankerOptimizer.follow_schedule, TokenGroup.mix, [0]

    def before_step(self: Any, done: int) -> None:
        now[0] = done + 1
        if now[0] == step and not in_exchange:
            strike()
        follow_schedule(self, done)

    def in_forward(self: Any, x_TBD: Any) -> Any:
        if now[0] == step and in_exchange:
            strike()
        return mix(self, x_TBD)

    for owner, name, replacement in (
        (RankerOptimizer, "follow_schedule", before_step),
        (TokenGroup, "mix", in_forward),
    ):
        setattr(owner, name, replacement)


if __name__ == "__main__":
    folder, fault, rank, step, *arguments = sys.argv[1:]
    Path(folder, f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    if os.environ["RANK"] == rank:
        if "=" in fault:
            arguments.append(fault)
        else:
            strike_at(fault, int(step))
    cli.command(arguments)
