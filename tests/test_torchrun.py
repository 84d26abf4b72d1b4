"""What an agent says that never gets as far as starting ranks."""

import pytest

from launch import torchrun

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
    assert torchrun.main(["--nnodes", "2", *rendezvous, "-m", "launch.cli", "schema"]) == 1
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rankmixer")]
    assert said in message
