"""`rankmixer` on a rank that torchrun starts, with the faults of RANKMIXER_FAULTS that are this rank's."""

from __future__ import annotations

import json
import os
import sys

from benchmarks.faults.points import install_on
from rankmixer.launch import cli

if __name__ == "__main__":
    install_on(int(os.environ["RANK"]), json.loads(os.environ["RANKMIXER_FAULTS"]))
    cli.command(sys.argv[1:])
