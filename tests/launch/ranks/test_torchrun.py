"""What an agent says that never gets as far as starting ranks, and what becomes of those of one that is killed."""

import os
import subprocess
import sys

import pytest

from rankmixer.launch.ranks import torchrun

NOBODY = "10.255.255.1:29511"  # an address that no host has
HERE = "127.0.0.1:0"


@pytest.mark.parametrize(
    ("endpoint", "conf", "said"),
    [
        (HERE, "join_timeout=1", "not all of 2 hosts have joined in time"),
        (NOBODY, "read_timeout=1", f"the rendezvous at {NOBODY} does not answer: its host is lost"),
    ],
)
def test_hosts_that_do_not_meet(endpoint: str, conf: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-id", "1", "--rdzv-endpoint", endpoint, "--rdzv-conf", conf]
    assert torchrun.main(["--nnodes", "2", *rendezvous, "-m", "rankmixer", "schema"]) == 1
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rankmixer")]
    assert said in message


@pytest.mark.parametrize(
    "begins",
    [
        "from rankmixer.launch.ranks.torchrun import end_with_launcher; end_with_launcher(); wait()",
        "from rankmixer.launch import cli; cli.main = lambda arguments: wait(); cli.command()",  # torch comes later
    ],
)
def test_a_rank_ends_with_the_torchrun_that_is_killed(begins: str) -> None:
    rank = f"import time\ndef wait(): print('there', flush=True); time.sleep(600)\n{begins}"
    torchrun = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])"
    launcher = subprocess.Popen(
        [sys.executable, "-c", torchrun], stdout=subprocess.PIPE, env={**os.environ, "TORCHELASTIC_RUN_ID": "1"}
    )
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b"there\n"
    launcher.kill()
    assert launcher.stdout.read() == b"", "the rank, which has the other end too, is still there"
    launcher.wait()
    launcher.stdout.close()
