"""Two hosts on one machine: network namespaces joined by a cable (veth), each with a name, an address and processes.

Nothing of it has a name outside: a host's namespaces live as long as its processes, and these die with the test, even
if that is killed. So tests may run side by side, and leave nothing behind.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# A process dies with the one that started it: a test that is killed takes its hosts along.
_BOUND = ["setpriv", "--pdeathsig", "KILL"]
_NAMES = "127.0.0.1 localhost\n10.77.0.1 node-0\n10.77.0.2 node-1\n10.77.0.3 node-2\n"
# Names come from that file alone: there is no server to ask.
_SWITCH = "passwd: files\ngroup: files\nhosts: files\n"
_SET_UP = """set -e
mount --make-rprivate /
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
hostname "$0"
ip link set lo up
echo ready
exec sleep infinity
"""


def cannot_make_hosts() -> str | None:
    """Why two hosts cannot be made here, or None."""
    missing = [name for name in ("ip", "nsenter", "setpriv", "unshare") if shutil.which(name) is None]
    if missing:
        return f"two hosts as network namespaces need {' and '.join(missing)} (Debian: iproute2, util-linux)"
    if os.geteuid() != 0:
        return "two hosts as network namespaces need root"
    # What Host does, tried out: a container's root may lack the right to any of these.
    attempt = "mount --make-rprivate / && ip link add one type veth peer name two && ip link set lo up"
    command = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", attempt]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (
        None if done.returncode == 0 else f"two hosts as network namespaces cannot be made here: {done.stderr.strip()}"
    )


class Host:
    """One host: a network of its own, a name, and the processes that run on it.

    Args:
        number: the host is node-NUMBER, at 10.77.0.(NUMBER + 1).
        etc: folder with the files that lie over those of /etc.
    """

    def __init__(self, number: int, etc: Path) -> None:
        self.name = f"node-{number}"
        self.address = f"10.77.0.{number + 1}"
        self._running: list[subprocess.Popen[bytes]] = []
        self._holder = subprocess.Popen(
            [*_BOUND, "unshare", "--net", "--uts", "--mount", "sh", "-c", _SET_UP, self.name, str(etc)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline()
        assert said == b"ready\n", said + self._holder.stdout.read()
        self.namespace = str(self._holder.pid)

    def start(self, command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
        """Start a command here; what it says is appended to `output`.

        It is the first process of a process namespace, so that all that it starts ends with it.
        """
        enter = ["nsenter", "--target", self.namespace, "--net", "--uts", "--mount"]
        inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--wd", os.getcwd()]
        with output.open("ab") as file:
            process = subprocess.Popen([*_BOUND, *enter, *inside, *command], stdout=file, stderr=subprocess.STDOUT)
        self._running.append(process)
        return process

    def kill(self) -> None:
        """End every process that was started here, and what it started, by SIGKILL."""
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()
        self._running.clear()

    def bytes_received(self) -> int:
        """What has come through the cable so far."""
        (line,) = (line for line in Path(f"/proc/{self.namespace}/net/dev").read_text().splitlines() if "eth0:" in line)
        return int(line.split(":")[1].split()[0])

    def close(self) -> None:
        """End the host."""
        self.kill()
        self._holder.kill()
        self._holder.communicate()


class Network:
    """Two hosts, node-0 and node-1, that reach each other through eth0.

    Args:
        folder: for a few small files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "hosts").write_text(_NAMES)
        (folder / "nsswitch.conf").write_text(_SWITCH)
        self.hosts: list[Host] = []
        try:
            for number in range(2):
                self.hosts.append(Host(number, folder))
            self._lay_cable()
        except BaseException:
            self.close()
            raise

    def cut(self) -> None:
        """Cut the cable: nothing arrives any more, and no connection is told."""
        _ip(self.hosts[1], "link", "set", "eth0", "down")

    def mend(self) -> None:
        """Join the cable again."""
        _ip(self.hosts[1], "link", "set", "eth0", "up")

    def replace(self) -> None:
        """Put node-2 in the place of node-1, which is gone as by a power cut: no connection is told."""
        _ip(self.hosts[1], "link", "delete", "eth0")
        self.hosts[1].close()
        self.hosts[1] = Host(2, self.folder)
        self._lay_cable()

    def close(self) -> None:
        """End both hosts and all that runs on them."""
        for host in self.hosts:
            host.close()

    def _lay_cable(self) -> None:
        here, there = (["eth0", "netns", host.namespace] for host in self.hosts)
        subprocess.run(["ip", "link", "add", *here, "type", "veth", "peer", "name", *there], check=True)
        for host in self.hosts:
            _ip(host, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip(host, "link", "set", "eth0", "up")


@contextmanager
def two_hosts(folder: Path) -> Iterator[Network]:
    """Two hosts that are gone afterwards, whatever happens."""
    network = Network(folder)
    try:
        yield network
    finally:
        network.close()


def _ip(host: Host, *arguments: str) -> None:
    subprocess.run(["nsenter", "--target", host.namespace, "--net", "ip", *arguments], check=True)
